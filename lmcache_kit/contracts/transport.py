"""Transports: request and reply of binary frames between instances.

An address is ``scheme://rest``. Frames are bytes-like; a transport neither reads nor changes them. Shaping to a
bandwidth and a latency wraps any transport (``lmcache_kit.builtin.transports.shaping``), so a transport does nothing
about it itself.

Capabilities:
    ``same_process``: it reaches other objects of the process only.
    ``same_host``: it reaches other processes of the host. Without either it reaches other hosts, and its addresses
        are ``scheme://host:port``; with this one they are ``scheme://name``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence

from lmcache_kit.contracts.storage import Buffer

__all__ = ["Channel", "FrameHandler", "Listener", "Transport"]

FrameHandler = Callable[[Sequence[Buffer]], Awaitable[Sequence[Buffer]]]
"""Answers one request. What it raises reaches the caller as TransportError with its text."""


class Listener(ABC):
    """An open address. Requests are handled concurrently."""

    @property
    @abstractmethod
    def address(self) -> str:
        """The address that peers connect to; names the port that was chosen when port 0 was asked for."""

    @abstractmethod
    async def close(self) -> None:
        """Stop listening; idempotent."""


class Channel(ABC):
    """A connection to one address; many requests may be in flight, each gets its own answer."""

    @abstractmethod
    async def request(self, frames: Sequence[Buffer], *, timeout: float) -> list[Buffer]:
        """The peer's answer to ``frames``.

        Raises UnavailableError when no answer arrives within ``timeout`` seconds (also when nobody listens yet) and
        TransportError when the peer's handler raised.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close; idempotent. Requests in flight end with UnavailableError."""


class Transport(ABC):
    """Makes listeners and channels. Works inside one running asyncio event loop."""

    @abstractmethod
    async def listen(self, address: str, handler: FrameHandler) -> Listener:
        """Open ``address``. Raises ConflictError when it is in use, naming it."""

    @abstractmethod
    async def connect(self, address: str) -> Channel:
        """A channel to ``address``. Does not wait for the peer."""
