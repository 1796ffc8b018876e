"""Stores the KV of prompts, chunk by chunk from the front."""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from lmcache_kit.errors import CapacityError, LMCacheKitError, UnavailableError
from lmcache_kit.instance.core.cache import CacheCore
from lmcache_kit.instance.core.tiers import EntryState
from lmcache_kit.instance.store.codecs import CodecSet
from lmcache_kit.instance.store.execution import Signal, Work
from lmcache_kit.instance.store.reader import Chunk
from lmcache_kit.instance.store.tier_io import TierIO
from lmcache_kit.instance.store.writer import Writer
from lmcache_kit.kv.layout import KVTensor

__all__ = ["SaveTotals", "Saver"]


@dataclass(slots=True)
class SaveTotals:
    """What a save has done so far; ``down`` are tiers that failed during it."""

    stored: list[Chunk] = field(default_factory=list)
    held_tokens: int = 0
    nbytes: int = 0
    by_location: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    down: set[int] = field(default_factory=set)


class Saver:
    """Encodes ahead in threads and writes in order, so that what is stored is always a prefix without holes."""

    def __init__(
        self, core: CacheCore, io: TierIO, work: Work, signal: Signal, writer: Writer, codecs: CodecSet, method: str
    ) -> None:
        self._core = core
        self._io = io
        self._work = work
        self._signal = signal
        self._writer = writer
        self._codecs = codecs
        self._method = method
        self._saving: set[str] = set()

    async def save(self, chunks: Sequence[Chunk], kv: KVTensor, first: int, protect: frozenset[str]) -> SaveTotals:
        """Store those of ``chunks`` that no tier holds; ``kv`` begins at token ``first``.

        Ends at the first chunk that no tier can take: without it those behind it could never be served.
        """
        totals = SaveTotals()
        async with aclosing(self._encoded(chunks, kv, first, totals)) as encoded:
            async for chunk, blob in encoded:
                if await self._settled(chunk):  # another save was faster
                    totals.held_tokens += chunk.num_tokens
                    continue
                encode = functools.partial(self._encode, kv, chunk, first)
                self._saving.add(chunk.name)
                try:
                    stored = await self._store(chunk, blob, encode, protect, totals)
                finally:
                    self._saving.discard(chunk.name)
                    self._signal.notify()
                if not stored:
                    break
        return totals

    async def _encoded(
        self, chunks: Sequence[Chunk], kv: KVTensor, first: int, totals: SaveTotals
    ) -> AsyncGenerator[tuple[Chunk, bytes], None]:
        waiting = deque(chunks)
        ahead: deque[tuple[Chunk, asyncio.Task[bytes] | None]] = deque()
        try:
            while waiting or ahead:
                while waiting and len(ahead) < self._work.threads:
                    chunk = waiting.popleft()
                    task = None
                    if not self._known(chunk):
                        encode = self._work.call(self._encode, kv, chunk, first)
                        task = asyncio.get_running_loop().create_task(encode)
                    ahead.append((chunk, task))
                chunk, task = ahead[0]
                held = await self._settled(chunk)
                if held:
                    totals.held_tokens += chunk.num_tokens
                    if task is not None:
                        await asyncio.wait([task])
                elif task is None:  # it was there, and was evicted since
                    yield chunk, await self._work.call(self._encode, kv, chunk, first)
                else:
                    try:
                        blob = await task
                    except LMCacheKitError as error:
                        totals.errors.append(f"chunk {chunk.name}: {error.detail}")
                        return
                    yield chunk, blob
                ahead.popleft()
        finally:
            rest = [task for _, task in ahead if task is not None and not task.done()]
            if rest:
                await asyncio.wait(rest)
            for _, task in ahead:
                if task is not None and not task.cancelled():
                    task.exception()

    def _encode(self, kv: KVTensor, chunk: Chunk, first: int, method: str | None = None) -> bytes:
        part = kv if chunk.num_tokens == kv.num_tokens else kv.tokens(chunk.start - first, chunk.stop - first)
        return self._codecs.encode(part, chunk.key, method or self._method)

    def _known(self, chunk: Chunk) -> bool:
        found = self._core.in_tiers(chunk.name, EntryState.READY, EntryState.WRITING)
        return any(self._io.tiers[tier].readable for tier in found)

    async def _settled(self, chunk: Chunk) -> bool:
        """Whether a tier that can be reached holds the chunk, once nobody is writing it."""
        while True:
            if chunk.name not in self._saving:
                holders = [tier for tier in self._core.holders(chunk.name) if self._io.tiers[tier].readable]
                if any(self._io.available[tier] for tier in holders):
                    return True
                if not self._core.in_tiers(chunk.name, EntryState.WRITING):
                    return False
            await self._signal.wait()

    async def _store(
        self,
        chunk: Chunk,
        blob: bytes,
        encode: Callable[[str], bytes],
        protect: frozenset[str],
        totals: SaveTotals,
    ) -> bool:
        """Write a chunk to where the placement policy wants it; whether any tier has it then.

        When none could take it, because all that is there may not be evicted or because it is down, the policy is
        asked again without those tiers: what does not fit into the first may fit into the next.
        """
        encoded = {self._method: blob}
        refused = set(totals.down)
        full: list[str] = []
        stored = held = False
        while not (stored or held) and (targets := self._core.store_targets(len(blob), refused)):
            others, full = full, []
            for tier in targets:
                try:
                    nbytes = await self._put(tier, chunk, encoded, encode, protect)
                except LMCacheKitError as error:
                    refused.add(tier)
                    if isinstance(error, UnavailableError):
                        totals.down.add(tier)  # one deadline for the whole save, not one for each chunk
                    problems = full if isinstance(error, CapacityError) else totals.errors
                    problems.append(f"chunk {chunk.name}: {error.detail}")
                    continue
                if nbytes is None:
                    held = True
                    continue
                stored = True
                location = self._io.tiers[tier].location
                totals.nbytes += nbytes
                totals.by_location[location] = totals.by_location.get(location, 0) + chunk.num_tokens
            if not (stored or held):  # otherwise these tiers stand in for those that were full
                full = others + full
        if not refused and not (stored or held):
            full.append(f"chunk {chunk.name}: no tier takes {len(blob)} bytes")
        totals.errors += full
        if stored:
            totals.stored.append(chunk)
        elif held:
            totals.held_tokens += chunk.num_tokens
        return stored or held

    async def _put(
        self,
        tier: int,
        chunk: Chunk,
        encoded: dict[str, bytes],
        encode: Callable[[str], bytes],
        protect: frozenset[str],
    ) -> int | None:
        """Write a chunk to a tier in the tier's method; its stored bytes, or None when it has the chunk already.

        ``encoded`` are the blobs that were made of it so far, by method. Raises what coding and writing raise.
        """
        method = self._io.tiers[tier].method or self._method
        if method not in encoded:
            encoded[method] = await self._work.call(encode, method)
        written = await self._writer.put(
            tier, chunk.key, encoded[method], num_tokens=chunk.num_tokens, codec=method, cause="store", protect=protect
        )
        return len(encoded[method]) if written else None
