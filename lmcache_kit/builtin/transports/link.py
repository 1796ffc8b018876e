"""A link of limited bandwidth and some latency, shared by all who use it.

Each direction is a queue: a message occupies its direction for ``bytes / bandwidth`` seconds, in order of arrival,
and reaches the other end ``latency`` seconds later. The two directions do not slow each other down (full duplex).

A link can change while messages pass: what is left of the message under way goes on at the new bandwidth.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

from lmcache_kit.clock import Clock, WallClock
from lmcache_kit.errors import ConfigError

__all__ = ["Direction", "Link", "LinkCutError", "Traffic"]

Sleep = Callable[[float], Awaitable[Any]]


class LinkCutError(Exception):
    """The link is cut, or was while something passed."""


@dataclass(slots=True)
class Traffic:
    """What passed one direction of a link.

    Args:
        messages: messages that passed whole.
        bytes: bytes that passed, including those of messages that were given up half way.
        busy_seconds: time during which the direction was occupied.
        queued_seconds: time that messages waited for their turn, summed over messages.
    """

    messages: int = 0
    bytes: int = 0
    busy_seconds: float = 0.0
    queued_seconds: float = 0.0


class Direction:
    """One direction of a :class:`Link`."""

    def __init__(self, bandwidth: float | None, latency: float, clock: Clock, sleep: Sleep) -> None:
        self.traffic = Traffic()
        self._bandwidth = bandwidth
        self._latency = latency
        self._clock = clock
        self._sleep = sleep
        self._free_at = clock.now()
        self._queue: deque[asyncio.Future[None]] = deque()
        self._changed: asyncio.Future[None] | None = None

    def change(self, bandwidth: float | None, latency: float) -> None:
        """Have another bandwidth from now on, and another latency for what leaves from now on."""
        self._bandwidth = bandwidth
        self._latency = latency
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    async def carry(self, nbytes: int, deadline: float) -> None:
        """Return when a message of ``nbytes`` that is handed over now has arrived.

        Raises TimeoutError at ``deadline``, a reading of the clock, when it has not arrived by then. A message that is
        given up, then or by cancelling, stops occupying the link at that moment.
        """
        sent = self._clock.now()
        if self._bandwidth is None:
            self.traffic.messages += 1
            self.traffic.bytes += nbytes
        else:
            sent = await self._occupy(nbytes, deadline)
        # The latency counts from when the last byte left, which is not now when the event loop is late.
        await self._sleep_until(sent + self._latency, deadline)

    async def delay(self, deadline: float) -> None:
        """Return after the latency alone. Raises TimeoutError at ``deadline`` when that comes first."""
        await self._sleep_until(self._clock.now() + self._latency, deadline)

    async def _occupy(self, nbytes: int, deadline: float) -> float:
        queued = self._clock.now()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        if len(self._queue) == 1:
            turn.set_result(None)
        try:
            await self._wait(turn, deadline)
            # A message whose turn came while the event loop was busy starts when the link was free, not when we woke.
            start = moment = end = max(queued, self._free_at)
            passed: float = 0  # bytes, up to ``moment``
            bandwidth = self._bandwidth
            try:
                while bandwidth is not None:
                    end = moment + (nbytes - passed) / bandwidth
                    if not await self._sleep_unless_changed(end, deadline):
                        break
                    now = min(max(self._clock.now(), moment), end)
                    passed += (now - moment) * bandwidth
                    moment, bandwidth = now, self._bandwidth
                else:  # without a limit the rest passes at once
                    end = moment
                passed, moment = nbytes, end
                self.traffic.messages += 1
            finally:
                if moment != end:
                    assert bandwidth is not None
                    now = min(max(self._clock.now(), moment), end)
                    passed, moment = passed + (now - moment) * bandwidth, now
                self._free_at = moment
                self.traffic.bytes += int(passed)
                self.traffic.busy_seconds += moment - start
                self.traffic.queued_seconds += max(0.0, start - queued)
            return end
        finally:
            self._queue.remove(turn)
            if self._queue and not self._queue[0].done():
                self._queue[0].set_result(None)

    async def _sleep_unless_changed(self, moment: float, deadline: float) -> bool:
        """As :meth:`_sleep_until`; returns at once, and True, when the link changes before."""
        left = min(moment, deadline) - self._clock.now()
        if left > 0:
            self._changed = asyncio.get_running_loop().create_future()
            alarm = asyncio.ensure_future(self._sleep(left))
            try:
                await asyncio.wait((self._changed, alarm), return_when=asyncio.FIRST_COMPLETED)
                if self._changed.done() and not alarm.done():
                    return True
            finally:
                self._changed = None
                alarm.cancel()
        if moment > deadline:
            raise TimeoutError
        return False

    async def _wait(self, turn: asyncio.Future[None], deadline: float) -> None:
        if turn.done():
            return
        alarm = asyncio.ensure_future(self._sleep(max(0.0, deadline - self._clock.now())))
        try:
            await asyncio.wait((turn, alarm), return_when=asyncio.FIRST_COMPLETED)
            if not turn.done():
                raise TimeoutError
        finally:
            alarm.cancel()

    async def _sleep_until(self, moment: float, deadline: float) -> None:
        left = min(moment, deadline) - self._clock.now()
        if left > 0:
            await self._sleep(left)
        if moment > deadline:
            raise TimeoutError


class Link:
    """Both directions of a link, seen from the side that asks.

    Args:
        bandwidth: bytes per second in each direction, above 0; None for no bound.
        latency: seconds from one end to the other, at least 0.
        clock: what time it is.
        sleep: waits for seconds of that clock.

    Raises ConfigError for an impossible bandwidth or latency.
    """

    def __init__(
        self,
        *,
        bandwidth: float | None = None,
        latency: float = 0.0,
        clock: Clock | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        _check(bandwidth, latency)
        self.bandwidth = bandwidth
        self.latency = latency
        self.clock = clock or WallClock()
        self.outward = Direction(bandwidth, latency, self.clock, sleep)
        self.inward = Direction(bandwidth, latency, self.clock, sleep)

        self._cut = False
        self._passing: set[asyncio.Timeout] = set()

    def change(self, *, bandwidth: float | None, latency: float) -> None:
        """Have another bandwidth and latency from now on. Raises ConfigError for impossible ones."""
        _check(bandwidth, latency)
        self.bandwidth, self.latency = bandwidth, latency
        for direction in (self.outward, self.inward):
            direction.change(bandwidth, latency)

    def cut(self) -> None:
        """Carry nothing until :meth:`mend`; what passes now fails. Idempotent."""
        self._cut = True
        passing, self._passing = self._passing, set()
        for scope in passing:
            scope.reschedule(asyncio.get_running_loop().time())

    def mend(self) -> None:
        """Undo :meth:`cut`. Idempotent."""
        self._cut = False

    @contextlib.asynccontextmanager
    async def passage(self) -> AsyncIterator[None]:
        """What is done inside needs the link: it is cancelled, and LinkCutError raised, when the link is cut."""
        if self._cut:
            raise LinkCutError
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._passing.add(scope)
                yield
        except TimeoutError:
            if scope.expired():
                raise LinkCutError from None
            raise
        finally:
            self._passing.discard(scope)

    def stats(self) -> dict[str, Any]:
        """Bandwidth, latency and the traffic of both directions as plain values."""
        return {
            "bandwidth": self.bandwidth,
            "latency": self.latency,
            "outward": asdict(self.outward.traffic),
            "inward": asdict(self.inward.traffic),
        }


def _check(bandwidth: float | None, latency: float) -> None:
    if bandwidth is not None and not 0 < bandwidth < float("inf"):
        raise ConfigError(f"a link's bandwidth must be above 0 bytes/s, got {bandwidth}")
    if not 0 <= latency < float("inf"):
        raise ConfigError(f"a link's latency must be at least 0 s, got {latency}")
