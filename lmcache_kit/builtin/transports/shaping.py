"""Any transport, slowed down to a bandwidth and a latency.

The bytes billed are the frames that really pass: what a codec saves, a shaped link saves. The time that the inner
transport takes comes on top; over shared memory or a loopback it is small against the links worth shaping.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lmcache_kit.builtin.transports.common import frames_size
from lmcache_kit.builtin.transports.link import Link, LinkCutError
from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.contracts.transport import Channel, FrameHandler, Listener, Transport
from lmcache_kit.errors import TransportError, UnavailableError

__all__ = ["Link", "ShapedChannel", "ShapedTransport"]


class ShapedChannel(Channel):
    """A channel whose requests and answers pass a link. Closing it closes the inner channel.

    Args:
        inner: does the real exchange.
        link: shared with every other channel that uses the same link.
        address: how errors name the peer.
    """

    def __init__(self, inner: Channel, link: Link, address: str) -> None:
        self._inner = inner
        self._link = link
        self._address = address

    @property
    def link(self) -> Link:
        return self._link

    async def request(self, frames: Sequence[Buffer], *, timeout: float) -> list[Buffer]:
        deadline = self._link.clock.now() + timeout
        try:
            async with self._link.passage():
                return await self._request(frames, deadline)
        except LinkCutError:
            raise UnavailableError(f"the link to {self._address} is cut") from None
        except TimeoutError:
            raise UnavailableError(
                f"the link to {self._address} did not carry the request and its answer within {timeout:.3g} s",
                hint=f"it is shaped to {_describe(self._link)}",
            ) from None

    async def _request(self, frames: Sequence[Buffer], deadline: float) -> list[Buffer]:
        await self._link.outward.carry(frames_size(frames), deadline)
        try:
            left = max(0.0, deadline - self._link.clock.now())
            answer = await self._inner.request(frames, timeout=left)
        except TransportError:
            await self._link.inward.delay(deadline)  # the refusal travels back, too
            raise
        await self._link.inward.carry(frames_size(answer), deadline)
        return answer

    async def close(self) -> None:
        await self._inner.close()


class ShapedTransport(Transport):
    """A transport whose channels pass links.

    Args:
        inner: makes the real listeners and channels.
        link: the link that all channels share, or a function of the address that names each channel's link and
            returns None for a channel that is not shaped.
    """

    def __init__(self, inner: Transport, link: Link | Callable[[str], Link | None]) -> None:
        self._inner = inner
        self._link = link

    async def listen(self, address: str, handler: FrameHandler) -> Listener:
        return await self._inner.listen(address, handler)

    async def connect(self, address: str) -> Channel:
        link = self._link if isinstance(self._link, Link) else self._link(address)
        channel = await self._inner.connect(address)
        return channel if link is None else ShapedChannel(channel, link, address)


def _describe(link: Link) -> str:
    bandwidth = "no bandwidth limit" if link.bandwidth is None else f"{link.bandwidth:.4g} bytes/s"
    return f"{bandwidth} and {link.latency:.4g} s"
