"""Broken pieces of the instance's cache and of the controller, for the state machines of tests/properties to catch.

Each has the names that it takes the place of in the module of the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lmcache_kit.controller.contents import Contents
from lmcache_kit.controller.core import ControllerCore
from lmcache_kit.controller.index import ChunkIndex
from lmcache_kit.controller.lookup import LookupTable
from lmcache_kit.instance.core.cache import CacheCore
from lmcache_kit.instance.core.pins import PinTable
from lmcache_kit.instance.core.tiers import EntryState, TierState

__all__ = ["CACHES", "CONTROLLERS", "BrokenPart"]


@dataclass(frozen=True, kw_only=True)
class BrokenPart:
    """What is wrong, and what to put under which name of the machine's module."""

    name: str
    wrong: str
    replaces: Mapping[str, Callable[..., Any]]


# --- the instance's cache ---------------------------------------------------------------------------------------------


class LeaksCapacity(CacheCore):
    def forget(self, removal):
        state, held = self.tiers[removal.tier], self.tiers[removal.tier].held
        super().forget(removal)
        state.held = held


class FreesTwice(CacheCore):
    """Room is given away when an object is chosen to go, and again when it is gone."""

    def retire(self, removal):
        state, entry = self.tiers[removal.tier], removal.entry
        if entry.listed and not entry.foreign:
            state.held -= min(state.held, entry.nbytes)
        super().retire(removal)


class KeepsItsClaims(CacheCore):
    """A write that did not happen keeps the room that it claimed."""

    def abort(self, ticket):
        claimed = 0 if ticket.started else ticket.growth
        super().abort(ticket)
        self.tiers[ticket.tier].claimed += claimed


class StartsWithoutRoom(CacheCore):
    def start(self, ticket):
        state = self.tiers[ticket.tier]
        capacity, state.capacity = state.capacity, None
        try:
            return super().start(ticket)
        finally:
            state.capacity = capacity


class FreesUnderReaders(CacheCore):
    """Does not count who reads."""

    def acquire(self, tier, name):
        return self.tiers[tier].ready(name)

    def release(self, tier, entry):
        pass

    def begin_rewrite(self, tier, entry, **how):
        entry.readers += 1
        try:
            return super().begin_rewrite(tier, entry, **how)
        finally:
            entry.readers -= 1


class AnnouncesTooEarly(CacheCore):
    """Tells of an object when its write begins."""

    def start(self, ticket):
        started = super().start(ticket)
        if started and not ticket.rewrite:
            self._announce.admit(self.tiers[ticket.tier], ticket.entry, ticket.cause)
        return started

    def commit(self, ticket):
        if not ticket.rewrite:
            ticket.entry.listed = False
        super().commit(ticket)


class RevivesSilently(CacheCore):
    """An object that stays after all is not announced again."""

    def revive(self, removal):
        removal.listed = False
        super().revive(removal)


class RewritesForFree(CacheCore):
    """The account keeps the size before a rewrite."""

    def commit(self, ticket):
        state = self.tiers[ticket.tier]
        held = state.held
        super().commit(ticket)
        if ticket.rewrite:
            state.held = held


class UnpinsForAll(CacheCore):
    """One owner's unpin ends the pins of all."""

    def unpin(self, tier, name, owner):
        done = super().unpin(tier, name, owner)
        if done:
            self.tiers[tier].pins.drop(name)
        return done


class LosesAPin(CacheCore):
    """A pin of an object that is being rewritten is not kept."""

    def pin(self, tier, name, owner, ttl):
        done = super().pin(tier, name, owner, ttl)
        if done and self.tiers[tier].entries[name].rewriting:
            self.tiers[tier].pins.drop(name)
        return done


class EvictsThePinned(TierState):
    def evictable(self, entry):
        return entry.state in (EntryState.READY, EntryState.DOUBTFUL) and entry.readers == 0 and not entry.foreign


class EvictsTheProtected(TierState):
    def choose_victims(self, protect):
        return super().choose_victims(frozenset())


class PinsOutliveTheirTime(PinTable):
    def owners(self, name):
        return dict(self._owners.get(name, {}))


class LongPins(TierState):
    def __post_init__(self):
        self.pins = PinsOutliveTheirTime(self.clock)


def _cache(name: str, made: type, wrong: str) -> BrokenPart:
    replaced = "CacheCore" if issubclass(made, CacheCore) else "TierState"
    return BrokenPart(name=name, wrong=wrong, replaces={replaced: made})


CACHES = (
    _cache("leaks_capacity", LeaksCapacity, "bytes of deleted objects stay in the account"),
    _cache("frees_twice", FreesTwice, "bytes of deleted objects are taken from the account twice"),
    _cache("keeps_its_claims", KeepsItsClaims, "room claimed by a write that was given up is never free again"),
    _cache("starts_without_room", StartsWithoutRoom, "a write begins before there is room: capacity is exceeded"),
    _cache("frees_under_readers", FreesUnderReaders, "an object that is being read is deleted"),
    _cache("announces_too_early", AnnouncesTooEarly, "an object is announced before its bytes are there"),
    _cache("revives_silently", RevivesSilently, "an object that stayed is not announced again"),
    _cache("rewrites_for_free", RewritesForFree, "a rewrite does not change the account"),
    _cache("unpins_for_all", UnpinsForAll, "one owner's unpin ends all pins"),
    _cache("loses_a_pin", LosesAPin, "a pin of an object that is being rewritten is lost"),
    _cache("evicts_the_pinned", EvictsThePinned, "a pinned object is evicted"),
    _cache("evicts_the_protected", EvictsTheProtected, "a chunk of the request at work is evicted for another of it"),
    _cache("long_pins", LongPins, "a pin outlives its time"),
)


# --- the controller ---------------------------------------------------------------------------------------------------


class EvictionsStay(ChunkIndex):
    """Evicted keys stay in the masks."""

    def change(self, bit, operations):
        super().change(bit, [operation for operation in operations if operation.op_type == "admit"])


class ReusesTooEarly(ChunkIndex):
    """A retired slot's bit is free before its keys are swept out."""

    def retire(self, bit):
        super().retire(bit)
        self._retired.remove(bit)
        self._free.append(bit)


class SweepsOneTooMany(ChunkIndex):
    """Sweeping clears whole masks."""

    def _clear(self, bit, key):
        self.masks.pop(key, None)

    def evict(self, bit, key):
        self.change(bit, [])

    def change(self, bit, operations):
        for operation in operations:
            if operation.op_type == "admit":
                self._keys[bit].discard(operation.key)
                self.admit(bit, [operation.key])
            elif operation.key in self._keys[bit]:
                super().change(bit, [operation])


class IgnoresGaps(Contents):
    """Lost operations are not noticed."""

    def _gap(self, worker, location, reason):
        self._counters.discontinuities += 1


class ForgetsToDrop(Contents):
    """What a worker held stays in the index after it left."""

    def drop(self, worker):
        worker.syncs.clear()
        worker.slots.clear()
        worker.seqs.clear()
        self.version += 1


class SyncsOverChanges(Contents):
    """A batch of a sync brings back what was evicted since it was made."""

    def sync_batch(self, worker, location, sync_id, batch_id, keys):
        session = worker.syncs.get(location)
        if session is not None:
            session.touched = set()
        return super().sync_batch(worker, location, sync_id, batch_id, keys)


class CompletesTooEarly(Contents):
    """A sync counts as done at its end message, whatever was lost of it."""

    def sync_end(self, worker, location, sync_id, total_keys):
        session = worker.syncs.get(location)
        if session is not None and session.sync_id == sync_id and not session.complete:
            session.received.update(range(session.batch_count))
        return super().sync_end(worker, location, sync_id, total_keys)


class CreditsPastGaps(LookupTable):
    """Counts every chunk that is held, also behind one that is not."""

    def _walk(self, keys, view, slots, workers):
        masks = self._contents.index.masks
        for stop, key in keys:
            for bit in view.owners:
                if masks.get(key, 0) & bit:
                    slots[bit] = stop
                    workers[view.owners[bit]] = stop


class AnyRankWillDo(LookupTable):
    """An instance counts as soon as one of its workers has its share."""

    def _credit(self, result, slots, workers):
        for masks in self._instances.values():
            best = max(workers.get(mask, 0) for mask in masks)
            workers.update(dict.fromkeys(masks, best))
        for group in {id(group): group for group in map(self._groups.__getitem__, slots)}.values():
            best = max(slots.get(bit, 0) for bit in group.bits)
            slots.update(dict.fromkeys(group.bits, best))
        super()._credit(result, slots, workers)


class OldTables(LookupTable):
    """Tables of slots are made once."""

    def _refresh(self):
        if self._version < 0 or len(self._registry.instances) != len(self._instances):
            super()._refresh()


def _controller(name: str, made: type, wrong: str) -> BrokenPart:
    def core(**options: Any) -> ControllerCore:
        built = ControllerCore(**options)
        owner: Any = {ChunkIndex: built.contents.index, Contents: built.contents, LookupTable: built._table}[
            made.__mro__[1]  # type: ignore[index]
        ]
        owner.__class__ = made
        return built

    return BrokenPart(name=name, wrong=wrong, replaces={"ControllerCore": core})


CONTROLLERS = (
    _controller("evictions_stay", EvictionsStay, "an evicted chunk stays in the index"),
    _controller("reuses_too_early", ReusesTooEarly, "a new location inherits the keys of one that is gone"),
    _controller("sweeps_one_too_many", SweepsOneTooMany, "removing one holder of a chunk removes all"),
    _controller("ignores_gaps", IgnoresGaps, "lost operations are not noticed"),
    _controller("forgets_to_drop", ForgetsToDrop, "the index keeps what a worker held that deregistered"),
    _controller("syncs_over_changes", SyncsOverChanges, "a sync brings back what was evicted meanwhile"),
    _controller("completes_too_early", CompletesTooEarly, "a sync with lost batches counts as complete"),
    _controller("credits_past_gaps", CreditsPastGaps, "a prefix with a hole in it is credited whole"),
    _controller("any_rank_will_do", AnyRankWillDo, "a chunk counts when one of several ranks holds its share"),
    _controller("old_tables", OldTables, "lookups use slots that were replaced"),
)
