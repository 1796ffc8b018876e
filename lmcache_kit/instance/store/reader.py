"""Loads prefixes: from the fastest tier that can serve each chunk, whatever its codec."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.errors import BlobError, UnavailableError
from lmcache_kit.instance.core.cache import CacheCore
from lmcache_kit.instance.core.tiers import Entry, EntryState
from lmcache_kit.instance.store.codecs import CodecSet
from lmcache_kit.instance.store.execution import Batches, Signal, Work
from lmcache_kit.instance.store.results import ChunkHit
from lmcache_kit.instance.store.tier_io import TierIO
from lmcache_kit.instance.store.writer import Writer
from lmcache_kit.kv.blob import BlobHeader, unpack_blob
from lmcache_kit.kv.keys import ChunkKey
from lmcache_kit.kv.layout import KVLayout, KVTensor

__all__ = ["Chunk", "MakeTensor", "Reader", "ServedChunk"]

log = logging.getLogger(__name__)

MakeTensor = Callable[[KVLayout, int], KVTensor]
"""Makes the tensor that a prefix is decoded into, for at most so many tokens: fewer shorten the prefix."""

_BYTES_AT_ONCE = 4 * 2**20
"""Of KV that may be under way; chunks so large that this is few of them, two for each thread."""


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """Tokens ``start`` to ``stop`` (exclusive) of a prompt, and their key."""

    start: int
    stop: int
    key: ChunkKey
    name: str

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class ServedChunk:
    """A chunk that was decoded: from tier ``tier``, out of ``blob``."""

    chunk: Chunk
    tier: int
    blob: Buffer
    hit: ChunkHit


@dataclass(slots=True)
class _Found:
    chunk: Chunk
    held: list[tuple[int, Entry]]
    probed: list[int]


class Reader:
    """Reads chunks; drops what is damaged; treats what cannot be reached as not there."""

    def __init__(
        self,
        core: CacheCore,
        io: TierIO,
        work: Work,
        signal: Signal,
        writer: Writer,
        codecs: CodecSet,
        layout: KVLayout,
    ) -> None:
        self._core = core
        self._io = io
        self._work = work
        self._decoding = Batches(work)
        self._signal = signal
        self._writer = writer
        self._codecs = codecs
        self._layout = layout

    async def load(
        self, chunks: Sequence[Chunk], limit: int, make: MakeTensor = KVTensor.empty
    ) -> tuple[KVTensor | None, list[ServedChunk]]:
        """KV of the longest servable run of ``chunks`` that ends at token ``limit`` at most, and what it was made from.

        The tensor begins at the first chunk's first token.
        """
        found: list[_Found] = []
        try:
            for chunk in chunks:
                if chunk.start >= limit or (place := await self._locate(chunk)) is None:
                    break
                found.append(place)
            if not found:
                return None, []
            first = chunks[0].start
            kv = make(self._layout, min(limit, found[-1].chunk.stop) - first)
            stop = first + kv.num_tokens
            while found and found[-1].chunk.start >= stop:
                self._release(found.pop())
            served = await self._fetch_all(found, kv, first) if found else []
        finally:
            for place in found:
                self._release(place)
        if not served:
            return None, []
        end = min(stop, served[-1].chunk.stop)
        return (kv if end == stop else kv.tokens(0, end - first)), served

    def _release(self, place: _Found) -> None:
        for tier, entry in place.held:
            self._core.release(tier, entry)
        place.held.clear()
        self._signal.notify()

    async def _locate(self, chunk: Chunk) -> _Found | None:
        while True:
            place = _Found(chunk, [], [])
            for tier in self._core.holders(chunk.name):
                if not self._io.tiers[tier].readable:
                    continue
                entry = self._core.acquire(tier, chunk.name)
                assert entry is not None
                place.held.append((tier, entry))
            if place.held:
                return place
            writing = self._core.in_tiers(chunk.name, EntryState.WRITING)
            if not any(self._io.tiers[tier].readable for tier in writing):
                break
            await self._signal.wait()  # being stored, or on its way from one tier to the next
        # What other instances put into a shared tier, or what we do not know of any more, is found by asking it.
        for tier, config in enumerate(self._io.tiers):
            if config.shared and config.readable and self._core.tiers[tier].state(chunk.name) is EntryState.ABSENT:
                try:
                    if await self._io.size(tier, chunk.name) is not None:
                        place.probed.append(tier)
                except UnavailableError:
                    continue
        return place if place.probed else None

    async def _fetch_all(self, found: Sequence[_Found], kv: KVTensor, first: int) -> list[ServedChunk]:
        """Decode every chunk into its place in ``kv``, whose first token is ``first``; the leading ones that worked."""
        largest = self._layout.nbytes(max(place.chunk.num_tokens for place in found))
        slots = asyncio.Semaphore(max(2 * self._work.threads, _BYTES_AT_ONCE // largest))
        broken = len(found)

        async def fetch(index: int, place: _Found) -> ServedChunk | None:
            nonlocal broken
            async with slots:
                served = await self._fetch(place, kv, first) if index < broken else None
            if served is None:
                broken = min(broken, index)
            self._release(place)
            return served

        if len(found) == 1:
            results = [await fetch(0, found[0])]
        else:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(fetch(index, place)) for index, place in enumerate(found)]
            results = [task.result() for task in tasks]
        return [served for served in results[:broken] if served is not None]

    async def _fetch(self, place: _Found, kv: KVTensor, first: int) -> ServedChunk | None:
        """Serve one chunk from the first tier that can."""
        chunk = place.chunk
        for tier in [*(tier for tier, _ in place.held), *place.probed]:
            try:
                blob = await self._io.get(tier, chunk.name)
            except UnavailableError:
                continue
            if blob is None:
                await self._drop(tier, place, "missing", "the tier does not have it any more")
                continue
            try:
                nbytes = self._layout.nbytes(chunk.num_tokens)
                header = await self._decoding.call(nbytes, self._decode_into, blob, chunk, kv, first)
            except BlobError as error:
                await self._drop(tier, place, "damaged", error.message)
                continue
            nbytes, stop = memoryview(blob).nbytes, min(chunk.stop, first + kv.num_tokens)
            location = self._io.tiers[tier].location
            if tier in place.probed:
                self._core.adopt(tier, chunk.key, nbytes=nbytes, num_tokens=chunk.num_tokens, codec=header.codec)
            elif (entry := self._core.tiers[tier].ready(chunk.name)) is not None:
                self._core.learn(tier, entry, nbytes=nbytes, codec=header.codec)
            return ServedChunk(chunk, tier, blob, ChunkHit(location, stop - chunk.start, nbytes, header.codec))
        return None

    def _decode_into(self, data: Buffer, chunk: Chunk, out: KVTensor, first: int) -> BlobHeader:
        blob = unpack_blob(data)
        check_header(blob.header, chunk.key, self._layout, chunk.num_tokens)
        stop = min(chunk.stop - first, out.num_tokens)
        self._codecs.decode_into(blob, out.data[:, :, chunk.start - first : stop])
        return blob.header

    async def _drop(self, tier: int, place: _Found, cause: str, why: str) -> None:
        location, name = self._io.tiers[tier].location, place.chunk.name
        log.warning("chunk %s is dropped from %s: %s", name, location, why)
        counters = self._io.counters[tier]
        counters.damaged += cause == "damaged"
        counters.missing += cause == "missing"
        for index, (held, entry) in enumerate(place.held):
            if held == tier:
                self._core.release(held, entry)
                del place.held[index]
                break
        self._signal.notify()
        try:
            if self._core.tiers[tier].ready(name) is not None:
                await self._writer.remove(tier, name, cause=cause, force=True)
            elif cause == "damaged" and self._core.tiers[tier].state(name) is EntryState.ABSENT:
                await self._io.delete(tier, name)
        except UnavailableError:
            return


def check_header(header: BlobHeader, key: ChunkKey, layout: KVLayout, num_tokens: int | None) -> None:
    """Raises BlobError when a blob is not the chunk that was asked for; any number of tokens for None."""
    if header.key != key:
        raise BlobError(f"the object under {key.name()} says it is {header.key.name()}")
    if header.layout != layout:
        raise BlobError(f"chunk {key.name()} has layout {header.layout}, this model has {layout}")
    if num_tokens is not None and header.num_tokens != num_tokens:
        raise BlobError(f"chunk {key.name()} holds {header.num_tokens} tokens, not {num_tokens}")
