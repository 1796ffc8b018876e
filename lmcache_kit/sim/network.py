"""Links between instances, and between them and the controller: bandwidth, latency, and whether they are cut."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from lmcache_kit.errors import UnavailableError
from lmcache_kit.sim.devices import Queue
from lmcache_kit.sim.loop import VirtualLoop

__all__ = ["CONTROLLER", "Network"]

CONTROLLER = "controller"


@dataclass(slots=True)
class _Shape:
    bandwidth: float | None = None
    latency: float = 0.0


@dataclass(slots=True)
class _Link:
    """Both directions of a link, by the instance that sends."""

    shape: _Shape
    directions: dict[str, Queue] = field(default_factory=dict)
    cut: bool = False


class Network:
    """All links of a fleet; those that nobody described take no time.

    Args:
        loop: virtual time.
    """

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._links: dict[frozenset[str], _Link] = {}

    def shape(self, one: str, other: str, bandwidth: float | None, latency: float) -> None:
        """Give a link a bandwidth in bytes a second, None for no bound, and a latency in seconds."""
        self._link(one, other).shape = _Shape(bandwidth, latency)

    def shapes(self) -> dict[frozenset[str], tuple[float | None, float]]:
        """What :meth:`shape` was told of each link."""
        return {ends: (link.shape.bandwidth, link.shape.latency) for ends, link in self._links.items()}

    def cut(self, one: str, other: str, *, cut: bool = True) -> None:
        """Nothing passes until it is mended with ``cut=False``."""
        self._link(one, other).cut = cut

    def whole(self, one: str, other: str) -> bool:
        """Whether anything passes."""
        link = self._links.get(frozenset((one, other)))
        return link is None or not link.cut

    async def carry(self, sender: str, receiver: str, nbytes: int) -> None:
        """Return when a message has passed and its answer, of no size, has come back. Raises UnavailableError."""
        link = self._link(sender, receiver)
        if link.cut:
            raise UnavailableError(f"{receiver} cannot be reached from {sender}")
        now, shape = self._loop.time(), link.shape
        queue = link.directions.setdefault(sender, Queue())
        busy = nbytes / shape.bandwidth if shape.bandwidth else 0.0
        await asyncio.sleep(queue.take(now, busy, nbytes) + 2 * shape.latency - now)
        if link.cut:
            raise UnavailableError(f"the link between {sender} and {receiver} broke")

    def traffic(self) -> list[dict[str, object]]:
        """What passed each direction that was used, sorted."""
        return [
            {
                "from": sender,
                "to": next(iter(ends - {sender})),
                "bytes": queue.bytes,
                "messages": queue.messages,
                "busy_seconds": queue.busy_seconds,
                "queued_seconds": queue.queued_seconds,
            }
            for ends, link in sorted(self._links.items(), key=lambda item: sorted(item[0]))
            for sender, queue in sorted(link.directions.items())
        ]

    def _link(self, one: str, other: str) -> _Link:
        return self._links.setdefault(frozenset((one, other)), _Link(_Shape()))
