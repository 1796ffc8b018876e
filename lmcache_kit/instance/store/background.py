"""Copies that nobody waits for: promotions after hits, write-backs after saves."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence

from lmcache_kit.contracts.placement import Promotion
from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.errors import BlobError, CapacityError, UnavailableError
from lmcache_kit.instance.core.cache import CacheCore
from lmcache_kit.instance.store.execution import BackgroundQueue, Signal, Work
from lmcache_kit.instance.store.reader import Chunk, ServedChunk
from lmcache_kit.instance.store.tier_io import TierIO
from lmcache_kit.instance.store.writer import Writer
from lmcache_kit.kv.blob import peek_header

__all__ = ["BackgroundCopies"]


class BackgroundCopies:
    """Two queues, each in the order of its requests. A copy that fails loses nothing: its source stays."""

    def __init__(self, core: CacheCore, io: TierIO, work: Work, signal: Signal, writer: Writer) -> None:
        self._core = core
        self._io = io
        self._work = work
        self._signal = signal
        self._writer = writer
        self._promotions = BackgroundQueue()
        self._write_backs = BackgroundQueue()

    @property
    def dropped(self) -> int:
        """Copies that were left out because too many were waiting."""
        return self._promotions.dropped + self._write_backs.dropped

    async def promoted(self) -> None:
        """Until every promotion that was asked for is done."""
        await self._promotions.idle()

    async def idle(self) -> None:
        """Until every copy that was asked for is done."""
        await self._promotions.idle()
        await self._write_backs.idle()

    def promote(self, wanted: Sequence[tuple[ServedChunk, Promotion]], prompt: Sequence[str]) -> None:
        """Copy or move served chunks to faster tiers; ``prompt`` are the names of all that was served, front first."""
        protect, written = frozenset(prompt), set[int]()
        for number, (one, promotion) in enumerate(wanted, 1):
            last = prompt if number == len(wanted) else ()
            self._promotions.add(functools.partial(self._promote, one, promotion, protect, written, last))

    def write_back(self, chunks: Sequence[Chunk], prompt: Sequence[str]) -> None:
        """Copy stored chunks to where the placement policy wants them once there is time."""
        self._write_backs.add(functools.partial(self._write_back, chunks, prompt))

    async def _promote(
        self,
        one: ServedChunk,
        promotion: Promotion,
        protect: frozenset[str],
        written: set[int],
        whole: Sequence[str],
    ) -> None:
        """``written`` collects the tiers that took some of a prompt; the last promotion has its names in ``whole``."""
        target, blob = promotion.target, one.blob
        if self._io.tiers[target].inline and not isinstance(blob, bytes):
            blob = await self._work.call(bytes, blob)  # here rather than by the backend on the event loop
        with contextlib.suppress(CapacityError, UnavailableError):
            if await self._writer.put(
                target,
                one.chunk.key,
                blob,
                num_tokens=one.chunk.num_tokens,
                codec=one.hit.codec,
                cause="promote",
                protect=protect,
            ):
                self._io.counters[target].promotions += 1
                written.add(target)
            if not promotion.keep_source and self._core.tiers[target].ready(one.chunk.name) is not None:
                await self._writer.remove(one.tier, one.chunk.name, cause="promote")
        self._core.keep_front(whole, written)

    async def _write_back(self, chunks: Sequence[Chunk], prompt: Sequence[str]) -> None:
        protect, down, took = frozenset(prompt), set[int](), set[int]()
        for chunk in chunks:
            for target in self._core.idle_targets(chunk.name):
                if target in down or (blob := await self._source(chunk)) is None:
                    continue
                try:
                    written = await self._writer.put(
                        target,
                        chunk.key,
                        blob,
                        num_tokens=chunk.num_tokens,
                        codec=peek_header(blob).codec,
                        cause="write_back",
                        protect=protect,
                    )
                except UnavailableError:
                    down.add(target)
                except (CapacityError, BlobError):
                    continue
                else:
                    self._io.counters[target].write_backs += written
                    if written:
                        took.add(target)
        self._core.keep_front(prompt, took)

    async def _source(self, chunk: Chunk) -> Buffer | None:
        for tier in self._core.holders(chunk.name):
            entry = self._core.acquire(tier, chunk.name)
            assert entry is not None
            try:
                blob = await self._io.get(tier, chunk.name)
            except UnavailableError:
                continue
            finally:
                self._core.release(tier, entry)
                self._signal.notify()
            if blob is not None:
                return blob
        return None
