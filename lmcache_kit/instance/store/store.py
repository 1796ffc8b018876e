"""The instance's store: the cache core, its tiers' backends, codecs and jobs behind one asynchronous interface."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from typing import Any

from lmcache_kit.clock import Clock
from lmcache_kit.contracts.placement import PlacementPolicy, Promotion
from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.errors import ConflictError, InvalidRequestError
from lmcache_kit.instance.core.cache import CacheCore
from lmcache_kit.instance.core.events import CacheChange, EventSink
from lmcache_kit.instance.core.tiers import Entry, Tier, TierState
from lmcache_kit.instance.store.arrivals import Arrivals
from lmcache_kit.instance.store.background import BackgroundCopies
from lmcache_kit.instance.store.codecs import CodecSet
from lmcache_kit.instance.store.execution import Signal, Work
from lmcache_kit.instance.store.jobs import JobTable
from lmcache_kit.instance.store.operations import RAW, Operations, PeerLink
from lmcache_kit.instance.store.planning import entries_in_method, readable_entries
from lmcache_kit.instance.store.prefix import chunks_of
from lmcache_kit.instance.store.reader import Chunk, MakeTensor, Reader, ServedChunk
from lmcache_kit.instance.store.recovery import recover
from lmcache_kit.instance.store.results import LoadedPrefix, SaveResult
from lmcache_kit.instance.store.saver import Saver
from lmcache_kit.instance.store.tier_io import TierIO
from lmcache_kit.instance.store.writer import Writer
from lmcache_kit.kv.blob import unpack_blob
from lmcache_kit.kv.hashing import ChunkHasher
from lmcache_kit.kv.keys import ChunkKey
from lmcache_kit.kv.layout import KVLayout, KVTensor
from lmcache_kit.messages import JobInfo

__all__ = ["KVStore"]


class KVStore:
    """All methods run on one event loop; I/O, codecs and checksums run in the store's threads.

    Args:
        model: fingerprint that every chunk key carries.
        layout: the model's KV layout; chunks of another one are never served.
        hasher: how tokens become chunk keys.
        tiers: fastest first, each with its own location.
        placement: decides which tiers hold an object.
        codecs: compression methods.
        clock: time of pins, jobs and events.
        on_change: told every change of contents, in order.
        peers: reaches other instances; without it, moves stay within this one.
        min_retrieve_tokens: shorter prefixes are not loaded.
        threads: size of the thread pool.
        store_codec: compression method that new chunks are stored in.
        on_event: told every decision of the cache core, in order.
    """

    def __init__(
        self,
        *,
        model: str,
        layout: KVLayout,
        hasher: ChunkHasher,
        tiers: Sequence[Tier],
        placement: PlacementPolicy,
        codecs: CodecSet,
        clock: Clock,
        on_change: Callable[[CacheChange], None],
        peers: PeerLink | None = None,
        min_retrieve_tokens: int = 0,
        threads: int = 2,
        store_codec: str = RAW,
        on_event: EventSink | None = None,
    ) -> None:
        locations = [tier.location for tier in tiers]
        if not tiers or len(set(locations)) != len(locations):
            raise InvalidRequestError(f"a store needs tiers of different locations, got {locations}")
        for method in (store_codec, *(tier.method for tier in tiers if tier.method is not None)):
            codecs.record(method)
        self.model = model
        self.layout = layout
        self.hasher = hasher
        self.codecs = codecs
        self._clock = clock
        self._min_retrieve_tokens = min_retrieve_tokens
        self._work = Work(threads)
        self._signal = Signal()
        self._io = TierIO(tiers, self._work)
        states = [
            TierState(index, tier.location, tier.capacity_bytes, tier.policy, clock, tier.writable)
            for index, tier in enumerate(tiers)
        ]
        self._core = CacheCore(states, placement, clock, on_change=on_change, on_event=on_event)
        self._writer = Writer(self._core, self._io, self._work, self._signal)
        self._reader = Reader(self._core, self._io, self._work, self._signal, self._writer, codecs, layout)
        self._saver = Saver(self._core, self._io, self._work, self._signal, self._writer, codecs, store_codec)
        self._operations = Operations(
            self._core, self._io, self._work, self._signal, self._writer, codecs, layout, peers
        )
        self._jobs = JobTable(clock)
        self._arrivals = Arrivals()
        self._copies = BackgroundCopies(self._core, self._io, self._work, self._signal, self._writer)
        self._requested_tokens = self._loaded_tokens = self._loads = 0
        self._closed = False

    # --- life --------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take over what persistent tiers hold, and announce it."""
        await recover(self._core, self._io, self._work, self._writer, self.model, self.layout)

    async def close(self) -> None:
        """Finish jobs, promotions and write-backs, then close the backends. Idempotent."""
        if self._closed:
            return
        self._closed = True
        await self.drain()
        await self._io.close()
        self._work.close()

    async def drain(self) -> None:
        """Until every job, promotion and write-back begun so far is done."""
        await self._jobs.idle()
        await self._copies.idle()
        await self._work.drain()

    # --- the engine's side -------------------------------------------------------------------------------------------

    async def load_prefix(
        self,
        tokens: Sequence[int],
        *,
        limit: int | None = None,
        start: int = 0,
        make: MakeTensor = KVTensor.empty,
    ) -> LoadedPrefix:
        """KV of the longest prefix of ``tokens`` that can be served, at most ``limit`` tokens of it.

        ``limit`` may cut inside a chunk. Each chunk comes from the fastest tier that can serve it. Damaged chunks are
        dropped and unreachable tiers passed over: both make the prefix shorter, neither is an error.

        Args:
            tokens: the prompt.
            limit: where the prefix ends at most; at the end of ``tokens`` when None.
            start: the tokens before it are at hand already, so that the load begins with the chunk that holds it.
            make: makes the tensor that is filled, to have it in memory of the caller's choice; it may be shorter.
        """
        began = self._clock.now()
        limit = len(tokens) if limit is None else min(limit, len(tokens))
        first = start - start % self.hasher.spec.chunk_size
        chunks = chunks_of(self.hasher, self.model, tokens) if limit > first else []
        chunks = [chunk for chunk in chunks if chunk.start >= first]
        ends = limit

        def made(layout: KVLayout, num_tokens: int) -> KVTensor:
            nonlocal ends
            tensor = make(layout, num_tokens)
            if tensor.num_tokens < num_tokens:
                ends = first + tensor.num_tokens  # what lies behind it is no miss
            return tensor

        kv, served = await self._reader.load(chunks, limit, made)
        self._loads += 1
        self._requested_tokens += max(0, limit - first)
        if len(served) < len(chunks) and chunks[len(served)].start < ends:
            self._core.miss(chunks[len(served)].key)
        if kv is None or kv.num_tokens < max(1, self._min_retrieve_tokens):
            return LoadedPrefix(None, 0, [], self._clock.now() - began, first)
        self._loaded_tokens += kv.num_tokens
        # From the back, so that the front of a prefix, without which the rest is useless, is the last to be evicted.
        promotions = [self._credit(one) for one in reversed(served)]
        wanted = zip(served, reversed(promotions), strict=True)
        self._copies.promote(
            [(one, promotion) for one, promotion in wanted if promotion is not None],
            [one.chunk.name for one in served],
        )
        return LoadedPrefix(kv, kv.num_tokens, [one.hit for one in served], self._clock.now() - began, first)

    def _credit(self, one: ServedChunk) -> Promotion | None:
        counters = self._io.counters[one.tier]
        counters.hits += 1
        counters.hit_tokens += one.hit.num_tokens
        return self._core.hit(one.tier, one.chunk.key, one.hit.stored_bytes)

    async def save(self, tokens: Sequence[int], kv: KVTensor, *, start: int = 0) -> SaveResult:
        """Store the chunks of ``tokens[start:]``, whose KV is ``kv``, that no tier holds yet.

        ``start`` is a chunk boundary. The tokens of one prompt never evict each other: of a prompt that is larger than
        the tiers, the front is kept. Raises InvalidRequestError for KV that does not belong to the tokens; what does
        not fit or cannot be written is reported in the result.
        """
        began = self._clock.now()
        size = self.hasher.spec.chunk_size
        if not 0 <= start <= len(tokens) or start % size:
            raise InvalidRequestError(
                f"start must be a multiple of {size} within the {len(tokens)} tokens, got {start}"
            )
        if kv.layout != self.layout:
            raise InvalidRequestError(f"KV has layout {kv.layout}, this model has {self.layout}")
        if kv.num_tokens != len(tokens) - start:
            raise InvalidRequestError(f"KV of {kv.num_tokens} tokens was given for tokens {start} to {len(tokens)}")
        await self._copies.promoted()  # so that the next decisions do not depend on how fast the last ones are done
        chunks = chunks_of(self.hasher, self.model, tokens)
        prompt = [chunk.name for chunk in chunks]
        protect = frozenset(prompt)
        totals = await self._saver.save([chunk for chunk in chunks if chunk.start >= start], kv, start, protect)
        self._core.keep_front(prompt)
        if totals.stored:
            self._copies.write_back(totals.stored, prompt)
        return SaveResult(
            num_tokens=sum(chunk.num_tokens for chunk in totals.stored),
            num_chunks=len(totals.stored),
            held_tokens=totals.held_tokens,
            nbytes=totals.nbytes,
            by_location=totals.by_location,
            seconds=self._clock.now() - began,
            errors=totals.errors,
        )

    # --- questions ---------------------------------------------------------------------------------------------------

    def locations(self) -> list[str]:
        """Fastest first."""
        return [tier.location for tier in self._io.tiers]

    def lookup(self, tokens: Sequence[int]) -> dict[str, int]:
        """Tokens held contiguously from token 0, for every location."""
        chunks = chunks_of(self.hasher, self.model, tokens)
        return {tier.location: _prefix(tier, chunks) for tier in self._core.tiers}

    def contents(self, location: str) -> list[ChunkKey]:
        """Keys that were announced as admitted and not as evicted. Raises UnknownNameError."""
        return [entry.key for entry in self._core.tier(location).listed()]

    def stats(self) -> dict[str, Any]:
        """Counters since the start, and the state of each tier, as JSON values."""
        return {
            "loads": self._loads,
            "requested_tokens": self._requested_tokens,
            "loaded_tokens": self._loaded_tokens,
            "jobs": self._jobs.counts(),
            "background_dropped": self._copies.dropped,
            "tiers": {tier.location: self._tier_stats(tier) for tier in self._core.tiers},
        }

    def _tier_stats(self, tier: TierState) -> dict[str, Any]:
        codecs: dict[str, int] = {}
        tokens = 0
        for entry in tier.listed():
            codecs[entry.codec or "unknown"] = codecs.get(entry.codec or "unknown", 0) + 1
            tokens += entry.num_tokens
        return {
            "capacity_bytes": tier.capacity,
            "used_bytes": tier.held,
            "chunks": sum(codecs.values()),
            "tokens": tokens,
            "pinned": len(tier.pins.names()),
            "codecs": codecs,
            **asdict(self._io.counters[tier.index]),
            "available": self._io.available[tier.index],
            "last_error": self._io.last_error[tier.index] or None,
        }

    # --- the controller's side ---------------------------------------------------------------------------------------

    def pin(self, location: str, tokens: Sequence[int], *, owner: str = "", ttl: float | None = None) -> int:
        """Keep every held chunk of ``tokens`` from eviction and clear, for ``ttl`` seconds or until unpinned.

        The tokens pinned. Raises UnknownNameError, InvalidRequestError for a bad ttl, NotFoundError when none is held.
        """
        tier = self._core.tier(location)
        tier.pins.check_ttl(ttl)
        entries = readable_entries(tier, self._names(tokens))
        return sum(entry.num_tokens for entry in entries if self._core.pin(tier.index, entry.name, owner, ttl))

    def unpin(self, location: str, tokens: Sequence[int] | None, *, owner: str = "") -> int:
        """Remove ``owner``'s pins from the chunks of ``tokens``, or all of them for None; tokens unpinned."""
        tier = self._core.tier(location)
        names = tier.pins.names(owner) if tokens is None else self._names(tokens)
        entries = [tier.entries[name] for name in names if name in tier.entries]
        return sum(entry.num_tokens for entry in entries if self._core.unpin(tier.index, entry.name, owner))

    async def clear(self, location: str) -> int:
        """Remove everything but pinned chunks; tokens removed.

        What other instances wrote into a shared location is forgotten here and stays there.
        """
        tier = self._core.tier(location)
        names = list(tier.entries)
        return sum([await self._writer.remove(tier.index, name, cause="clear") for name in names])

    def set_full(self, locations: Collection[str]) -> None:
        """Have the named locations take nothing new, and all others again. Raises UnknownNameError."""
        full = {self._core.tier(location).index for location in locations}
        for tier in self._core.tiers:
            tier.full = tier.index in full

    def start_compress(self, event_id: str, method: str, location: str, tokens: Sequence[int] | None) -> JobInfo:
        """Plan to put the held chunks of ``tokens``, or of the whole location for None, into ``method``.

        Chunks that are in another method are transcoded; chunks that are in ``method`` already are left alone. The
        result is kept even where it is larger: the location is then in that method, and the ratio says so.
        Raises UnknownNameError, NotFoundError when nothing is held, ConflictError for a used event id.
        """
        tier = self._core.tier(location)
        self.codecs.record(method)
        entries = readable_entries(tier, None if tokens is None else self._names(tokens))
        return self._start_recode(event_id, tier, entries, method, None)

    def start_decompress(self, event_id: str, method: str, location: str, tokens: Sequence[int] | None) -> JobInfo:
        """Plan to turn the chunks that are in ``method`` back into raw ones.

        Raises UnknownNameError, NotFoundError when nothing is held, ConflictError when no chunk is in ``method``.
        """
        tier = self._core.tier(location)
        self.codecs.record(method)
        entries = readable_entries(tier, None if tokens is None else self._names(tokens))
        planned = entries_in_method(tier, entries, method)
        return self._start_recode(event_id, tier, planned, RAW, method)

    def _start_recode(
        self, event_id: str, tier: TierState, entries: Sequence[Entry], method: str, source: str | None
    ) -> JobInfo:
        keys = [entry.key for entry in entries]
        work = functools.partial(self._operations.recode, tier=tier.index, keys=keys, method=method, source=source)
        return self._jobs.add(event_id, sum(entry.num_tokens for entry in entries), work)

    def start_move(
        self,
        event_id: str,
        location: str,
        peer_url: str,
        target_location: str,
        tokens: Sequence[int] | None,
        *,
        copy: bool,
    ) -> JobInfo:
        """Plan to take the held chunks of ``tokens`` (None: all) to ``target_location`` of the peer.

        An empty ``peer_url``, or this instance's own, means another tier of this instance.
        Raises UnknownNameError, NotFoundError, ConflictError.
        """
        tier = self._core.tier(location)
        target = self._operations.check_target(tier, peer_url, target_location)
        entries = readable_entries(tier, None if tokens is None else self._names(tokens))
        work = functools.partial(
            self._operations.move,
            tier=tier.index,
            keys=[entry.key for entry in entries],
            target=target,
            peer=(peer_url, target_location),
            copy=copy,
            event_id=event_id,
        )
        return self._jobs.add(event_id, sum(entry.num_tokens for entry in entries), work)

    def job(self, event_id: str) -> JobInfo:
        """State of a job. Raises NotFoundError for an id that is unknown or forgotten."""
        return self._jobs.get(event_id)

    def _names(self, tokens: Sequence[int]) -> list[str]:
        return [chunk.name for chunk in chunks_of(self.hasher, self.model, tokens)]

    # --- the peers' side ---------------------------------------------------------------------------------------------

    async def receive(self, location: str, blob: Buffer, *, move: str = "") -> int:
        """Store a chunk that a peer sent, as it is; its tokens, also when it was here already.

        Chunks that came under the same ``move`` are not evicted for it.
        Raises UnknownNameError, BlobError for damaged bytes, ConflictError for another model's chunk, CapacityError,
        UnavailableError.
        """
        tier = self._core.tier(location)
        header = (await self._work.call(unpack_blob, blob)).header
        if header.key.model != self.model or header.layout != self.layout:
            raise ConflictError(
                f"the chunk belongs to model {header.key.model}, this instance serves {self.model}",
                hint="chunks move only between instances of one model",
            )
        if not 1 <= header.num_tokens <= self.hasher.spec.chunk_size:
            raise ConflictError(
                f"the chunk has {header.num_tokens} tokens, chunks here have at most {self.hasher.spec.chunk_size}"
            )
        self.codecs.record(header.codec)
        await self._operations.deliver(
            tier.index,
            header.key,
            blob,
            num_tokens=header.num_tokens,
            codec=header.codec,
            cause="receive",
            protect=self._arrivals.of(move, location),
        )
        self._arrivals.add(move, location, header.key.name())
        return header.num_tokens

    async def read(self, location: str, key: ChunkKey) -> Buffer | None:
        """The stored blob as it is, or None. Raises UnknownNameError and UnavailableError."""
        tier = self._core.tier(location).index
        entry = self._core.acquire(tier, key.name())
        if entry is None:
            return None
        try:
            return await self._io.get(tier, key.name())
        finally:
            self._core.release(tier, entry)
            self._signal.notify()


def _prefix(tier: TierState, chunks: Sequence[Chunk]) -> int:
    end = 0
    for chunk in chunks:
        entry = tier.entries.get(chunk.name)
        if entry is None or not entry.listed:
            break
        end = chunk.stop
    return end
