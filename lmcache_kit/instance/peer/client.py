"""Sends chunks to other instances and fetches theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmcache_kit.builtin.transports.shaping import Link, ShapedChannel
from lmcache_kit.clock import Clock
from lmcache_kit.contracts.records import TransportPlugin
from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.contracts.transport import Channel, Transport
from lmcache_kit.errors import (
    BlobError,
    InvalidRequestError,
    TransportError,
    UnavailableError,
    UnknownNameError,
    error_from_status,
)
from lmcache_kit.instance.peer.messages import (
    MAX_SECONDS,
    Answer,
    ContentsRequest,
    GetRequest,
    PeerRequest,
    PingRequest,
    PutRequest,
    decode_answer,
    encode_message,
)
from lmcache_kit.instance.peer.url import normal_peer_url, peer_scheme, same_peer
from lmcache_kit.kv import ChunkKey, peek_header
from lmcache_kit.plugins import PluginRegistry, registry

__all__ = ["Adjustment", "PeerClient"]

DEFAULT_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustment:
    """What a link is for a while: ``bandwidth`` in bytes/s and ``latency`` in seconds where given, or ``cut``."""

    bandwidth: float | None = None
    latency: float | None = None
    cut: bool = False


class PeerClient:
    """Exchanges blobs with other instances, over one channel per peer.

    Args:
        own_url: this instance's own peer URL, or None when it has none.
        transports: transports by scheme; others are made from the plugins with default options when first needed.
        shaping: ``(bandwidth in bytes/s or None, latency in seconds)`` of the link to a peer URL; ``"*"`` stands for
            every peer that is not named. All requests to one peer share its link.
        clock: time of shaped links.
        sleep: waits for seconds of that clock.
        plugins: where transports are looked up; the process's registry by default.
        adjustable: every link may be changed by :meth:`adjust` later; otherwise only those in ``shaping`` have a Link.
    """

    def __init__(
        self,
        own_url: str | None = None,
        transports: Mapping[str, Transport] | None = None,
        shaping: Mapping[str, tuple[float | None, float]] | None = None,
        *,
        clock: Clock | None = None,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
        plugins: PluginRegistry | None = None,
        adjustable: bool = False,
    ) -> None:
        self._own_url = None if own_url is None else normal_peer_url(own_url)
        self._transports = dict(transports or {})
        self._shaping = {url if url == "*" else normal_peer_url(url): link for url, link in (shaping or {}).items()}
        self._clock = clock
        self._sleep = sleep
        self._plugins = plugins
        self._channels: dict[str, asyncio.Task[Channel]] = {}
        self._links: dict[str, Link] = {}
        self._adjustable = adjustable
        self._adjusted: dict[str, Adjustment] = {}
        self._closed = False

    def adjust(self, adjustments: Mapping[str, Adjustment]) -> None:
        """Change the links to the named peer URLs at run time, and have all others as they were made.

        Raises ConfigError for an impossible bandwidth or latency and InvalidRequestError for what is no peer URL, with
        nothing changed.
        """
        assert self._adjustable
        for each in adjustments.values():
            Link(bandwidth=each.bandwidth, latency=each.latency or 0.0)
        self._adjusted = {normal_peer_url(url): each for url, each in adjustments.items()}
        for url, link in self._links.items():
            self._apply(url, link)

    def _apply(self, url: str, link: Link) -> None:
        bandwidth, latency = self._shape(url) or (None, 0.0)
        wanted = next((each for named, each in self._adjusted.items() if same_peer(named, url)), Adjustment())
        link.change(
            bandwidth=bandwidth if wanted.bandwidth is None else wanted.bandwidth,
            latency=latency if wanted.latency is None else wanted.latency,
        )
        if wanted.cut:
            link.cut()
        else:
            link.mend()

    def is_self(self, peer_url: str) -> bool:
        """Whether ``peer_url`` names this instance, however its host is spelled."""
        return self._own_url is not None and same_peer(self._own_url, peer_url)

    async def send(
        self, peer_url: str, location: str, blob: Buffer, *, timeout: float = DEFAULT_TIMEOUT, move: str = ""
    ) -> int:
        """Store ``blob`` in the peer's ``location``; returns the tokens that it stored.

        The peer evicts nothing that it got under the same ``move`` for it.
        Raises the error that the peer answered (its status and hint), or UnavailableError.
        """
        request = PutRequest(location=location, move=move, seconds=_seconds(timeout))
        answer, _ = await self._ask(peer_url, request, timeout, blob)
        return answer.tokens

    async def fetch(
        self, peer_url: str, location: str, key: ChunkKey, *, timeout: float = DEFAULT_TIMEOUT
    ) -> Buffer | None:
        """The blob that the peer holds for ``key`` in ``location``, or None.

        Its header is checked and must be of ``key``; the caller's decoding checks the payload. Raises BlobError when
        the header is damaged, the error that the peer answered, or UnavailableError.
        """
        request = GetRequest(location=location, key=key.name(), seconds=_seconds(timeout))
        answer, blob = await self._ask(peer_url, request, timeout)
        if not answer.found:
            return None
        found = peek_header(blob).key
        if found != key:
            raise BlobError(f"peer {peer_url} answered with chunk {found.name()} when asked for {key.name()}")
        return blob

    async def contents(self, peer_url: str, location: str, *, timeout: float = DEFAULT_TIMEOUT) -> list[ChunkKey]:
        """Keys of everything in the peer's ``location``, ordered by name; fetched page by page.

        ``timeout`` holds for each page.
        """
        keys: list[ChunkKey] = []
        after = ""
        while True:
            request = ContentsRequest(location=location, after=after, seconds=_seconds(timeout))
            answer, _ = await self._ask(peer_url, request, timeout)
            keys += [ChunkKey.parse(name) for name in answer.keys]
            if not answer.more:
                return keys
            if not answer.keys or answer.keys[-1] <= after:
                raise TransportError(f"peer {peer_url} answered the same page of contents twice")
            after = answer.keys[-1]

    async def ping(self, peer_url: str, *, timeout: float = DEFAULT_TIMEOUT) -> tuple[str, list[str]]:
        """Model fingerprint and locations of the peer."""
        answer, _ = await self._ask(peer_url, PingRequest(seconds=_seconds(timeout)), timeout)
        return answer.model, answer.locations

    def stats(self) -> dict[str, Any]:
        """Traffic of every shaped link in use, by peer URL."""
        return {url: link.stats() for url, link in self._links.items()}

    async def close(self) -> None:
        """Close every channel; idempotent. Requests in flight end with UnavailableError."""
        self._closed = True
        channels, self._channels = self._channels, {}
        for opening in channels.values():
            done = await asyncio.gather(opening, return_exceptions=True)
            if isinstance(done[0], Channel):
                await done[0].close()

    async def _ask(
        self, peer_url: str, request: PeerRequest, timeout: float, blob: Buffer | None = None
    ) -> tuple[Answer, Buffer]:
        channel = await self._channel(normal_peer_url(peer_url))
        frames: list[Buffer] = [encode_message(request)] if blob is None else [encode_message(request), blob]
        received: Sequence[Buffer] = await channel.request(frames, timeout=timeout)
        try:
            answer = decode_answer(received)
        except InvalidRequestError as error:
            raise TransportError(f"peer {peer_url}: {error.message}", hint=error.hint) from None
        if answer.status != 200:
            raise error_from_status(answer.status, f"peer {peer_url}: {answer.error}", hint=answer.hint)
        return answer, received[-1]

    async def _channel(self, url: str) -> Channel:
        if self._closed:
            raise UnavailableError("the peer client is closed")
        opening = self._channels.get(url)
        if opening is None:
            opening = self._channels[url] = asyncio.get_running_loop().create_task(self._open(url))
        try:
            return await asyncio.shield(opening)
        except Exception:
            if self._channels.get(url) is opening:
                del self._channels[url]
            raise

    async def _open(self, url: str) -> Channel:
        channel = await self._transport(peer_scheme(url)).connect(url)
        shape = self._shape(url)
        if shape is None and not self._adjustable:
            return channel
        bandwidth, latency = shape or (None, 0.0)
        link = self._links[url] = Link(bandwidth=bandwidth, latency=latency, clock=self._clock, sleep=self._sleep)
        if self._adjustable:
            self._apply(url, link)
        return ShapedChannel(channel, link, url)

    def _shape(self, url: str) -> tuple[float | None, float] | None:
        shape = next((shape for named, shape in self._shaping.items() if named != "*" and same_peer(named, url)), None)
        return shape or self._shaping.get("*")

    def _transport(self, scheme: str) -> Transport:
        made = self._transports.get(scheme)
        if made is not None:
            return made
        plugins = self._plugins or registry()
        by_scheme: dict[str, TransportPlugin] = {}
        for entry in plugins.all("transport"):
            assert isinstance(entry.record, TransportPlugin)
            by_scheme[entry.record.scheme] = entry.record
        record = by_scheme.get(scheme)
        if record is None:
            raise UnknownNameError("peer URL scheme", scheme, {*self._transports, *by_scheme})
        transport = self._transports[scheme] = record.factory(plugins.options(record))
        return transport


def _seconds(timeout: float) -> float:
    return min(max(timeout, 0.001), MAX_SECONDS)
