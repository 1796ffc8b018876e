"""An instance's store in virtual time: the same cache core, with queues and costs in place of bytes.

Decisions are those of :mod:`lmcache_kit.instance.store`, in the same order: a load acquires its chunks, reads them,
then credits them from the back and promotes; a save writes chunk by chunk from the front, what must go going first. A
load's decisions fall on its begin and its end, a save's on its end. A chunk weighs its header and its KV divided by the
codec's ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field

from lmcache_kit.contracts.placement import PlacementPolicy, Promotion
from lmcache_kit.errors import CapacityError
from lmcache_kit.instance.core.cache import CacheCore
from lmcache_kit.instance.core.events import CacheChange, EventSink
from lmcache_kit.instance.core.tickets import Removal, WriteTicket
from lmcache_kit.instance.core.tiers import Entry, EntryState, TierState
from lmcache_kit.instance.store.prefix import chunks_of
from lmcache_kit.instance.store.reader import Chunk
from lmcache_kit.kv.blob import blob_size
from lmcache_kit.kv.hashing import ChunkHasher
from lmcache_kit.kv.keys import ChunkKey
from lmcache_kit.kv.layout import KVLayout
from lmcache_kit.sim.costs import CodecCosts, Costs
from lmcache_kit.sim.devices import TierDevice
from lmcache_kit.sim.loop import VirtualClock, VirtualLoop
from lmcache_kit.sim.processor import Processor

__all__ = ["Loaded", "Saved", "SimStore", "SimTier"]


@dataclass(slots=True, kw_only=True)
class SimTier:
    """A tier without a backend; fields as in :class:`lmcache_kit.instance.core.tiers.Tier`.

    ``shared`` are the sizes of what all instances keep in a shared tier, None for one of our own.
    """

    location: str
    state: TierState
    device: TierDevice
    persistent: bool
    readable: bool
    method: str | None
    shared: dict[str, int] | None


@dataclass(slots=True)
class Loaded:
    """What a load found: tokens by location and by nothing else, stored bytes, chunks by codec."""

    num_tokens: int = 0
    by_location: dict[str, int] = field(default_factory=dict)
    codecs: dict[str, int] = field(default_factory=dict)
    nbytes: int = 0


@dataclass(slots=True)
class Saved:
    """What a save stored: tokens once, tokens by location, stored bytes."""

    num_tokens: int = 0
    by_location: dict[str, int] = field(default_factory=dict)
    nbytes: int = 0


class SimStore:
    """See the module.

    Args:
        loop: virtual time.
        model: fingerprint that every chunk key carries.
        layout: the model's KV layout.
        hasher: how tokens become chunk keys.
        tiers: fastest first.
        placement: decides which tiers hold an object.
        costs: of codecs.
        processor: what codes, with others; None for one of its own.
        on_change, on_event: as of the cache core.
        store_method: compression method that new chunks are stored in.
        min_retrieve_tokens: shorter prefixes are not loaded.
    """

    def __init__(
        self,
        loop: VirtualLoop,
        *,
        model: str,
        layout: KVLayout,
        hasher: ChunkHasher,
        tiers: Sequence[SimTier],
        placement: PlacementPolicy,
        costs: Costs,
        processor: Processor | None = None,
        on_change: Callable[[CacheChange], None],
        on_event: EventSink | None,
        store_method: str,
        min_retrieve_tokens: int,
    ) -> None:
        self._loop = loop
        self.model = model
        self.layout = layout
        self.hasher = hasher
        self.tiers = list(tiers)
        self.costs = costs
        self._processor = processor
        self.store_method = store_method
        self._min_retrieve_tokens = min_retrieve_tokens
        states = [tier.state for tier in tiers]
        self.core = CacheCore(states, placement, VirtualClock(loop), on_change=on_change, on_event=on_event)
        self._codecs: dict[str, CodecCosts] = {}
        self._payloads: dict[tuple[int, str], int] = {}
        self._sizes: dict[tuple[int, str, int], int] = {}
        self._readable = [(index, tier.state.entries) for index, tier in enumerate(tiers) if tier.readable]
        self._leaving: dict[int, Removal] = {}
        self.evictions = self.demotions = self.promotions = 0
        self.dead = False

    def die(self) -> None:
        """The instance is killed: what is under way never ends, and nothing is told any more."""
        self.dead = True

    def chunks(self, tokens: Sequence[int]) -> list[Chunk]:
        """The chunks of a prompt, as :meth:`load` and :meth:`save` take them."""
        return chunks_of(self.hasher, self.model, tokens)

    def size(self, name: str, num_tokens: int, method: str) -> int:
        """Stored bytes of a chunk."""
        kind = (num_tokens, method, len(name))
        size = self._sizes.get(kind)
        if size is None:
            payload = self._payloads.get((num_tokens, method))
            if payload is None:
                payload = round(self.layout.nbytes(num_tokens) / self._codec(method).ratio)
            size = self._sizes[kind] = blob_size(method, name, payload)
        return size

    # --- loads -------------------------------------------------------------------------------------------------------

    def load(self, chunks: Sequence[Chunk], limit: int, done: Callable[[Loaded], object]) -> None:
        """``done`` is called with the longest servable prefix, at most ``limit`` tokens, once it has been read."""
        core, now = self.core, self._loop.time()
        found: list[tuple[Chunk, list[tuple[int, Entry]], int, str, int]] = []
        ready, decoding = now, 0.0
        for chunk in chunks:
            if chunk.start >= limit:
                break
            name = chunk.name
            held: list[tuple[int, Entry]] = []
            for index, entries in self._readable:
                if name in entries and self.there(index, name):
                    entry = core.acquire(index, name)
                    if entry is not None:
                        held.append((index, entry))
            if held:
                tier, codec, nbytes = held[0][0], held[0][1].codec, held[0][1].nbytes
            else:
                probed = self._probe(name)
                if probed is None:
                    break
                tier, nbytes = probed
                codec = self.tiers[tier].method or self.store_method
            found.append((chunk, held, tier, codec, nbytes))
            read = self.tiers[tier].device.read(now, nbytes)
            ready = read if read > ready else ready
            decoding += self.decode_seconds(codec, chunk.num_tokens)
        turns = self.costs.decoding_turns(len(found), self.layout.nbytes(found[-1][0].stop)) if found else 1
        seconds = decoding / turns
        end = ready + seconds + self.costs.load_seconds
        if self._processor is None:
            self._loop.at(end, self._loaded, chunks, limit, found, done)
        else:
            seconds += self.costs.load_seconds
            self._processor.run_at(ready, seconds, self._loaded, chunks, limit, found, done, cores=turns)

    def there(self, tier: int, name: str) -> bool:
        """Whether what a tier is known to hold is there still. Another instance may have deleted it in a shared one,
        which is found out, and remembered, by asking for it."""
        shared = self.tiers[tier].shared
        if shared is None or name in shared:
            return True
        self.remove(tier, name, cause="missing", force=True)
        return False

    def _probe(self, name: str) -> tuple[int, int] | None:
        """The shared tier that has an object which we do not know of, and its size."""
        for index, tier in enumerate(self.tiers):
            if tier.shared is not None and tier.readable and tier.state.state(name) is EntryState.ABSENT:
                nbytes = tier.shared.get(name)
                if nbytes is not None:
                    return index, nbytes
        return None

    def _codec(self, method: str) -> CodecCosts:
        found = self._codecs.get(method)
        if found is None:
            found = self._codecs[method] = self.costs.codec(method)
        return found

    def decode_seconds(self, codec: str, num_tokens: int) -> float:
        """Of one chunk in one thread."""
        costs = self._codec(codec)
        return costs.chunk_seconds + self.layout.nbytes(num_tokens) / (costs.decode_gbps * 1e9)

    def encode_seconds(self, codec: str, num_tokens: int) -> float:
        """Of one chunk in one thread."""
        costs = self._codec(codec)
        return costs.chunk_seconds + self.layout.nbytes(num_tokens) / (costs.encode_gbps * 1e9)

    def _loaded(
        self,
        chunks: Sequence[Chunk],
        limit: int,
        found: list[tuple[Chunk, list[tuple[int, Entry]], int, str, int]],
        done: Callable[[Loaded], object],
    ) -> None:
        if self.dead:
            return
        core, result = self.core, Loaded()
        for chunk, held, tier, codec, nbytes in found:
            for index, entry in held:
                self.release(index, entry)
            if not held:
                core.adopt(tier, chunk.key, nbytes=nbytes, num_tokens=chunk.num_tokens, codec=codec)
        count = len(found)
        if count < len(chunks) and chunks[count].start < limit:
            core.miss(chunks[count].key)
        tokens = min(limit, found[-1][0].stop) if found else 0
        if tokens >= max(1, self._min_retrieve_tokens):
            result.num_tokens = tokens
            for chunk, _, tier, codec, nbytes in found:
                location = self.tiers[tier].location
                part = min(chunk.stop, tokens) - chunk.start
                result.by_location[location] = result.by_location.get(location, 0) + part
                result.codecs[codec] = result.codecs.get(codec, 0) + 1
                result.nbytes += nbytes
            # From the back, as the store does: the front of a prefix is the last to be evicted.
            wanted = [core.hit(tier, chunk.key, nbytes) for chunk, _, tier, _, nbytes in reversed(found)]
            if any(promotion is not None for promotion in wanted):
                protect = frozenset(chunk.name for chunk, *_ in found)
                took: set[int] = set()
                for (chunk, _, tier, codec, nbytes), promotion in zip(found, reversed(wanted), strict=True):
                    if promotion is not None and self._promote(chunk, tier, codec, nbytes, promotion, protect):
                        took.add(promotion.target)
                core.keep_front([chunk.name for chunk, *_ in found], took)
        done(result)

    def _promote(
        self, chunk: Chunk, tier: int, codec: str, nbytes: int, promotion: Promotion, protect: Set[str]
    ) -> bool:
        """Whether its target took it."""
        target = promotion.target
        try:
            written = self.put(target, chunk.key, nbytes, chunk.num_tokens, codec, "promote", protect)
        except CapacityError:
            return False
        self.promotions += written
        if not promotion.keep_source and self.core.tiers[target].ready(chunk.name) is not None:
            self.remove(tier, chunk.name, cause="promote")
        return written

    def release(self, tier: int, entry: Entry) -> None:
        """End a read; what had to wait for it goes."""
        self.core.release(tier, entry)
        if not entry.readers and (removal := self._leaving.pop(id(entry), None)) is not None:
            self._forget(removal)

    # --- saves -------------------------------------------------------------------------------------------------------

    def save(self, chunks: Sequence[Chunk], start: int, done: Callable[[Saved], object]) -> None:
        """Store those of ``chunks`` from token ``start`` on that no tier holds; then ``done`` is called."""
        now = self._loop.time()
        method = self.store_method
        missing = [chunk for chunk in chunks if chunk.start >= start and not self._held(chunk.name)]
        tokens = sum(chunk.num_tokens for chunk in missing)
        nbytes = sum(self.size(chunk.name, chunk.num_tokens, method) for chunk in missing)
        coding = self._codec(method)
        encoding = len(missing) * coding.chunk_seconds + self.layout.nbytes(tokens) / (coding.encode_gbps * 1e9)
        written = now
        if missing:
            largest = self.size(missing[0].name, missing[0].num_tokens, method)
            for tier in self.core.store_targets(largest):
                written = max(written, self.tiers[tier].device.write(now, nbytes, len(missing)))
        turns = max(1, min(self.costs.threads, len(missing)))
        besides = self.costs.save_seconds if missing else 0.0
        if self._processor is None:
            end = max(written, now + encoding / turns) + besides
            self._loop.at(end, self._saved, chunks, start, done)
        else:
            self._processor.run(encoding / turns, self._encoded, written, besides, chunks, start, done, cores=turns)

    def _encoded(
        self,
        written: float,
        besides: float,
        chunks: Sequence[Chunk],
        start: int,
        done: Callable[[Saved], object],
    ) -> None:
        """What was encoded meanwhile was written at ``written`` at the earliest."""
        self._loop.at(max(written, self._loop.time()) + besides, self._saved, chunks, start, done)

    def _held(self, name: str) -> bool:
        for _, entries in self._readable:
            entry = entries.get(name)
            if entry is not None and entry.state is EntryState.READY:
                return True
        return False

    def _saved(self, chunks: Sequence[Chunk], start: int, done: Callable[[Saved], object]) -> None:
        if self.dead:
            return
        result = Saved()
        protect = frozenset(chunk.name for chunk in chunks)
        stored: list[Chunk] = []
        for chunk in chunks:
            if chunk.start < start or self._held(chunk.name):
                continue
            written, held = self._store(chunk, protect, result)
            if written:
                stored.append(chunk)
                result.num_tokens += chunk.num_tokens
            elif not held:
                break
        prompt = [chunk.name for chunk in chunks]
        self.core.keep_front(prompt)
        took: set[int] = set()
        for chunk in stored:
            self._write_back(chunk, protect, took)
        self.core.keep_front(prompt, took)
        done(result)

    def _store(self, chunk: Chunk, protect: Set[str], result: Saved) -> tuple[bool, bool]:
        """Whether it was written to a tier, and whether one had it already; as :meth:`Saver._store` does it."""
        written = held = False
        refused: set[int] = set()
        billed = True  # the first tier's time was counted when the save began
        size = self.size(chunk.name, chunk.num_tokens, self.store_method)
        while not (written or held) and (targets := self.core.store_targets(size, refused)):
            for tier in targets:
                method = self.tiers[tier].method or self.store_method
                nbytes = self.size(chunk.name, chunk.num_tokens, method)
                try:
                    new = self.put(tier, chunk.key, nbytes, chunk.num_tokens, method, "store", protect, billed=billed)
                except CapacityError:
                    refused.add(tier)
                    continue
                held = held or not new
                if new:
                    written = True
                    location = self.tiers[tier].location
                    result.nbytes += nbytes
                    result.by_location[location] = result.by_location.get(location, 0) + chunk.num_tokens
            billed = False
        return written, held

    def _write_back(self, chunk: Chunk, protect: Set[str], took: set[int]) -> None:
        """Tiers that took it are added to ``took``."""
        for target in self.core.idle_targets(chunk.name):
            holders = self.core.holders(chunk.name)
            if not holders:
                return
            source = self.core.tiers[holders[0]].entries[chunk.name]
            try:
                if self.put(target, chunk.key, source.nbytes, chunk.num_tokens, source.codec, "write_back", protect):
                    took.add(target)
            except CapacityError:
                continue

    # --- writes and removals -----------------------------------------------------------------------------------------

    def put(
        self,
        tier: int,
        key: ChunkKey,
        nbytes: int,
        num_tokens: int,
        codec: str,
        cause: str,
        protect: Set[str],
        *,
        billed: bool = False,
    ) -> bool:
        """Write an object unless the tier has it; whether it was written. ``billed``: its time has been counted.

        Raises CapacityError when it does not fit, or the tier takes nothing at present.
        """
        own, name = self.tiers[tier], key.name()
        entry = own.state.entries.get(name)
        if entry is not None and entry.state is EntryState.READY:
            return False
        if own.shared is not None and name in own.shared:
            self.core.adopt(tier, key, nbytes=own.shared[name], num_tokens=num_tokens, codec="")
            return False
        if entry is not None:
            raise CapacityError(f"{name} is on its way out of {own.location}")
        ticket = self.core.begin_put(
            tier, key, nbytes=nbytes, num_tokens=num_tokens, codec=codec, cause=cause, protect=protect
        )
        self.write(ticket, billed=billed)
        return True

    def write(self, ticket: WriteTicket, *, billed: bool = False) -> None:
        """Carry out a write that the core decided. Raises CapacityError when room cannot be made."""
        core, own = self.core, self.tiers[ticket.tier]
        while ticket.removals:
            self._carry_out(ticket.removals.pop(0))
        if not core.start(ticket):
            core.abort(ticket)
            raise CapacityError(f"{own.location} waits for readers before it has room")
        if not billed:
            own.device.write(self._loop.time(), ticket.nbytes)
        core.commit(ticket)
        if own.shared is not None:
            own.shared[ticket.entry.name] = ticket.nbytes

    def remove(self, tier: int, name: str, *, cause: str, force: bool = False) -> int:
        """Remove an object; its tokens, or 0 when there is none or it is pinned."""
        removal = self.core.begin_remove(tier, name, cause=cause, force=force)
        if removal is None:
            return 0
        self._carry_out(removal)
        return removal.entry.num_tokens if removal.listed and not removal.entry.foreign else 0

    def _carry_out(self, removal: Removal) -> None:
        if removal.demotion is not None:
            self._demote(removal, removal.demotion)
        self.core.retire(removal)
        if removal.entry.readers:
            self._leaving[id(removal.entry)] = removal
        else:
            self._forget(removal)

    def _demote(self, removal: Removal, demotion: WriteTicket) -> None:
        self.tiers[removal.tier].device.read(self._loop.time(), removal.entry.nbytes)
        try:
            self.write(demotion)
        except CapacityError:
            return
        self.demotions += 1

    def _forget(self, removal: Removal) -> None:
        tier = self.tiers[removal.tier]
        if tier.shared is not None and not removal.entry.foreign:
            tier.shared.pop(removal.entry.name, None)
        self.core.forget(removal)
        self.evictions += removal.cause in ("capacity", "demote")
