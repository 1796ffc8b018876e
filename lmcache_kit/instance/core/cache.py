"""The instance's cache as a sans-IO core: which tier holds what, what is evicted, where objects go.

Every change of a tier has two phases. ``begin_*`` decides and claims space, the adapter (or the simulator) moves the
bytes, and ``commit``, ``abort``, ``forget`` or ``revive`` tells the core what became of it. Decisions of one call,
down to the last demotion that they cause, are made before it returns, so no object is ever in no tier between two
calls. Calls come from one thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterable, Sequence, Set

from msgspec.structs import replace

from lmcache_kit.clock import Clock
from lmcache_kit.contracts.placement import PlacementPolicy, Promotion, TierView
from lmcache_kit.errors import CapacityError, UnknownNameError
from lmcache_kit.instance.core.announcer import Announcer
from lmcache_kit.instance.core.events import ChangeSink, EventSink
from lmcache_kit.instance.core.tickets import Removal, WriteTicket
from lmcache_kit.instance.core.tiers import Entry, EntryState, TierState
from lmcache_kit.kv.keys import ChunkKey

__all__ = ["CacheCore"]


class CacheCore:
    """Tiers, fastest first, under one placement policy.

    Args:
        tiers: their states, with ``index`` counting from 0.
        placement: decides in which tiers objects live.
        clock: time of events and pins.
        on_change: told every change of contents, in order.
        on_event: told every decision, in order.
    """

    def __init__(
        self,
        tiers: Sequence[TierState],
        placement: PlacementPolicy,
        clock: Clock,
        *,
        on_change: ChangeSink,
        on_event: EventSink | None = None,
    ) -> None:
        self.tiers = list(tiers)
        self._placement = placement
        # Most policies want nothing copied later, and need not be asked about every object.
        self._copies_later = type(placement).on_idle is not PlacementPolicy.on_idle
        self._announce = Announcer(clock, on_change, on_event)
        self._index = {tier.location: tier.index for tier in self.tiers}

    # --- questions ---------------------------------------------------------------------------------------------------

    def tier(self, location: str) -> TierState:
        """Raises UnknownNameError for an unknown location."""
        try:
            return self.tiers[self._index[location]]
        except KeyError:
            raise UnknownNameError("location", location, self._index) from None

    def holders(self, name: str) -> list[int]:
        """Tiers where the object can be read, fastest first."""
        ready = EntryState.READY
        return [
            tier.index for tier in self.tiers if (entry := tier.entries.get(name)) is not None and entry.state is ready
        ]

    def in_tiers(self, name: str, *states: EntryState) -> list[int]:
        """Tiers that have the object in one of ``states``, fastest first."""
        return [tier.index for tier in self.tiers if tier.state(name) in states]

    def store_targets(self, nbytes: int, refused: Container[int] = ()) -> list[int]:
        """Where the placement policy wants a new object, tiers that cannot take it left out, in the policy's order.

        To the policy, tiers in ``refused`` are not writable: they could not take this object when they were asked.
        """
        views = self._views()
        if refused:
            views = [replace(view, writable=False) if tier in refused else view for tier, view in enumerate(views)]
        wanted = self._placement.on_store(views, nbytes)
        return [index for index in dict.fromkeys(wanted) if index not in refused and self._takes(index, nbytes)]

    def idle_targets(self, name: str) -> list[int]:
        """Where the placement policy wants copies of an object once there is time for it."""
        if not self._copies_later:
            return []
        held = self.in_tiers(name, EntryState.READY, EntryState.WRITING)
        if not held or (entry := self.tiers[held[0]].entries[name]).state is not EntryState.READY:
            return []
        wanted = self._placement.on_idle(self._views(), held, entry.nbytes)
        return [index for index in dict.fromkeys(wanted) if index not in held and self._takes(index, entry.nbytes)]

    def _views(self) -> list[TierView]:
        return [tier.view() for tier in self.tiers]

    def _takes(self, index: int, nbytes: int) -> bool:
        return 0 <= index < len(self.tiers) and self.tiers[index].fits(nbytes)

    def _free_for(self, index: int, name: str, nbytes: int) -> bool:
        return self._takes(index, nbytes) and self.tiers[index].state(name) is EntryState.ABSENT

    # --- reads -------------------------------------------------------------------------------------------------------

    def acquire(self, tier: int, name: str) -> Entry | None:
        """Begin to read: the bytes stay until :meth:`release`. None when the tier has nothing readable."""
        entry = self.tiers[tier].ready(name)
        if entry is not None:
            entry.readers += 1
        return entry

    def release(self, tier: int, entry: Entry) -> None:
        """End a read begun by :meth:`acquire`."""
        entry.readers -= 1
        if entry.readers == 0 and entry.state is EntryState.LEAVING and not entry.foreign:
            self.tiers[tier].leaving += entry.nbytes

    def hit(self, tier: int, key: ChunkKey, nbytes: int) -> Promotion | None:
        """An object was served from ``tier``. The promotion to carry out, if the policy wants a possible one."""
        name, state = key.name(), self.tiers[tier]
        entry = state.ready(name)
        if entry is not None and not entry.foreign:
            state.policy.touch(name)
        self._announce.event("hit", state.location, key, nbytes, "")
        promotion = self._placement.on_hit(self._views(), tier, nbytes)
        if promotion is None or not self._free_for(promotion.target, name, nbytes):
            return None
        return promotion

    def miss(self, key: ChunkKey) -> None:
        """No tier could serve the chunk."""
        self._announce.event("miss", "", key, 0, "")

    # --- writes ------------------------------------------------------------------------------------------------------

    def begin_put(
        self,
        tier: int,
        key: ChunkKey,
        *,
        nbytes: int,
        num_tokens: int,
        codec: str,
        cause: str,
        protect: Set[str] = frozenset(),
    ) -> WriteTicket:
        """Decide to write an object that the tier does not have in any state.

        Names in ``protect`` are not evicted for it. Raises CapacityError, with nothing changed, when it cannot fit.
        """
        state, name = self.tiers[tier], key.name()
        assert name not in state.entries, f"{name} is already in {state.location}"
        if not state.fits(nbytes):
            raise CapacityError(state.refusal(nbytes))
        entry = Entry(key, name, nbytes, num_tokens, codec)
        ticket = WriteTicket(tier, entry, nbytes, nbytes, cause, protect, codec)
        state.claimed += nbytes
        try:
            self.plan(ticket)
        except CapacityError:
            state.claimed -= nbytes
            raise
        state.entries[name] = entry
        return ticket

    def begin_rewrite(self, tier: int, entry: Entry, *, nbytes: int, codec: str) -> WriteTicket:
        """Decide to replace a readable object by another encoding of it.

        The caller holds the entry by :meth:`acquire` until after the commit. Until the commit the tier accounts for
        the larger of both encodings. Raises CapacityError, with nothing changed, when a larger one cannot fit.
        """
        state = self.tiers[tier]
        assert entry.state is EntryState.READY
        assert entry.readers > 0
        assert not entry.rewriting
        growth = max(0, nbytes - (0 if entry.foreign else entry.nbytes))
        if not state.fits(nbytes):
            raise CapacityError(state.refusal(nbytes))
        ticket = WriteTicket(tier, entry, nbytes, growth, "rewrite", frozenset({entry.name}), codec, rewrite=True)
        state.claimed += growth
        try:
            self.plan(ticket)
        except CapacityError:
            state.claimed -= growth
            raise
        entry.rewriting = True
        return ticket

    def plan(self, ticket: WriteTicket) -> bool:
        """Add the removals that the ticket still needs; whether there were any. Raises CapacityError."""
        state = self.tiers[ticket.tier]
        if ticket.growth == 0 or state.capacity is None or state.planned <= state.capacity:
            return False
        victims = state.choose_victims(ticket.protect)
        # All victims leave before any demotion is decided: a demotion may evict from other tiers, never from this one.
        ticket.removals += [self._evict(state, victim, ticket.protect) for victim in victims]
        return bool(victims)

    def start(self, ticket: WriteTicket) -> bool:
        """Whether there is room now; from then on the bytes count as held and may be written."""
        state = self.tiers[ticket.tier]
        if ticket.growth and state.capacity is not None and state.held + ticket.growth > state.capacity:
            return False
        state.claimed -= ticket.growth
        state.held += ticket.growth
        ticket.started = True
        return True

    def commit(self, ticket: WriteTicket) -> None:
        """The bytes are in the backend and readable."""
        assert ticket.started
        state, entry = self.tiers[ticket.tier], ticket.entry
        if ticket.rewrite:
            state.held += ticket.nbytes - ticket.growth - (0 if entry.foreign else entry.nbytes)
            entry.nbytes, entry.codec, entry.rewriting, entry.foreign = ticket.nbytes, ticket.codec, False, False
            if entry.state is EntryState.READY:
                state.policy.admit(entry.name, entry.nbytes)
            self._announce.event("rewrite", state.location, entry.key, entry.nbytes, ticket.codec)
            return
        entry.state = EntryState.READY
        state.policy.admit(entry.name, entry.nbytes)
        self._announce.admit(state, entry, ticket.cause)

    def abort(self, ticket: WriteTicket) -> None:
        """The write did not happen: the backend has what it had before. Removals not carried out are undone."""
        state, entry = self.tiers[ticket.tier], ticket.entry
        if ticket.started:
            state.held -= ticket.growth
        else:
            state.claimed -= ticket.growth
        if ticket.rewrite:
            entry.rewriting = False
        else:
            del state.entries[entry.name]
        for removal in ticket.removals:
            if removal.demotion is not None:
                self.abort(removal.demotion)
            self.revive(removal)
        ticket.removals.clear()

    def keep_front(self, names: Sequence[str], tiers: Iterable[int] | None = None) -> None:
        """A prompt with these chunks, front first, was written to ``tiers``, as far as they took it; None for all."""
        for tier in self.tiers if tiers is None else [self.tiers[index] for index in sorted(tiers)]:
            held = [
                name
                for name in names
                if (entry := tier.entries.get(name)) is not None
                and entry.state is EntryState.READY
                and not entry.foreign
            ]
            if held:
                tier.policy.keep_front(held)

    # --- removals ----------------------------------------------------------------------------------------------------

    def _evict(self, state: TierState, entry: Entry, protect: Set[str]) -> Removal:
        removal = self._leave(state, entry, "capacity", evicted=True)
        if removal.doubtful:
            return removal
        others = self.in_tiers(entry.name, EntryState.READY, EntryState.WRITING)
        target = self._placement.on_evict(self._views(), state.index, others, entry.nbytes)
        if target is not None and target > state.index and self._free_for(target, entry.name, entry.nbytes):
            with contextlib.suppress(CapacityError):  # no room below either: the object is dropped, as a cache may
                removal.demotion = self.begin_put(
                    target,
                    entry.key,
                    nbytes=entry.nbytes,
                    num_tokens=entry.num_tokens,
                    codec=entry.codec,
                    cause="demote",
                    protect=protect,
                )
                removal.cause = "demote"
        if removal.demotion is None:
            self.retire(removal)
        return removal

    def _leave(self, state: TierState, entry: Entry, cause: str, *, evicted: bool) -> Removal:
        removal = Removal(state.index, entry, cause, entry.listed, entry.state is EntryState.DOUBTFUL)
        entry.state = EntryState.LEAVING
        if not entry.foreign:
            state.policy.remove(entry.name, evicted=evicted)
            if entry.readers == 0:
                state.leaving += entry.nbytes
        return removal

    def begin_remove(self, tier: int, name: str, *, cause: str, force: bool = False) -> Removal | None:
        """Decide to remove an object. None when there is none, or it is pinned and ``force`` is not set.

        Its bytes may be deleted once ``entry.readers`` is 0.
        """
        state = self.tiers[tier]
        entry = state.entries.get(name)
        if entry is None or entry.state not in (EntryState.READY, EntryState.DOUBTFUL):
            return None
        if not force and state.pins.pinned(name):
            return None
        removal = self._leave(state, entry, cause, evicted=False)
        self.retire(removal)
        return removal

    def retire(self, removal: Removal) -> None:
        """Announce that the object goes, before its bytes do. Idempotent."""
        self._announce.evict(self.tiers[removal.tier], removal.entry, removal.cause)

    def forget(self, removal: Removal) -> None:
        """The bytes are deleted."""
        state, entry = self.tiers[removal.tier], removal.entry
        assert entry.readers == 0
        assert not entry.listed
        if not entry.foreign:
            state.held -= entry.nbytes
            state.leaving -= entry.nbytes
        state.pins.drop(entry.name)
        del state.entries[entry.name]

    def revive(self, removal: Removal) -> None:
        """The bytes could not be deleted, or need not be: the object is there as before."""
        state, entry = self.tiers[removal.tier], removal.entry
        self._stay(state, entry)
        if removal.doubtful:
            entry.state = EntryState.DOUBTFUL
        elif removal.listed:
            self._announce.admit(state, entry, "revive")

    def _stay(self, state: TierState, entry: Entry) -> None:
        entry.state = EntryState.READY
        if not entry.foreign:
            state.policy.admit(entry.name, entry.nbytes)
            if entry.readers == 0:
                state.leaving -= entry.nbytes

    # --- doubt -------------------------------------------------------------------------------------------------------

    def doubt_removal(self, removal: Removal) -> None:
        """A deletion failed and the backend would not say what is there. The object was announced as gone."""
        self.retire(removal)
        self._stay(self.tiers[removal.tier], removal.entry)
        removal.entry.state = EntryState.DOUBTFUL

    def doubt_write(self, ticket: WriteTicket) -> None:
        """A write failed and the backend would not say what is there.

        What a rewrite replaced can still be read, as one encoding or the other: its size counts as the larger one and
        its codec as not known, until :meth:`learn` is told.
        """
        assert ticket.started
        state, entry = self.tiers[ticket.tier], ticket.entry
        if ticket.rewrite:
            entry.nbytes = ticket.growth + (0 if entry.foreign else entry.nbytes)
            entry.codec, entry.rewriting, entry.foreign = "", False, False
        else:
            entry.state = EntryState.DOUBTFUL
        if entry.state is not EntryState.LEAVING:
            state.policy.admit(entry.name, entry.nbytes)

    def learn(self, tier: int, entry: Entry, *, nbytes: int, codec: str) -> None:
        """An object whose codec was not known was read."""
        state = self.tiers[tier]
        if entry.codec or entry.rewriting or entry.state is not EntryState.READY:
            return
        entry.codec = codec
        if not entry.foreign and nbytes < entry.nbytes:
            state.held -= entry.nbytes - nbytes
            entry.nbytes = nbytes
            state.policy.admit(entry.name, nbytes)

    # --- objects found -----------------------------------------------------------------------------------------------

    def restore(
        self, tier: int, key: ChunkKey, *, nbytes: int, num_tokens: int, codec: str, doubtful: bool = False
    ) -> None:
        """An object of an earlier run was found; :meth:`announce_restored` ends the recovery of a tier."""
        state, name, found = self.tiers[tier], key.name(), EntryState.DOUBTFUL if doubtful else EntryState.READY
        state.entries[name] = Entry(key, name, nbytes, num_tokens, codec, found)
        state.held += nbytes
        state.policy.admit(name, nbytes)

    def trim(self, tier: int) -> list[Removal]:
        """Removals that bring a recovered tier within its capacity."""
        state = self.tiers[tier]
        victims = state.choose_victims(frozenset())
        return [self._leave(state, entry, "capacity", evicted=True) for entry in victims]

    def announce_restored(self, tier: int) -> None:
        """Announce every recovered object that stays."""
        state = self.tiers[tier]
        for entry in state.entries.values():
            if entry.state is EntryState.READY:
                self._announce.admit(state, entry, "recover")

    def adopt(self, tier: int, key: ChunkKey, *, nbytes: int, num_tokens: int, codec: str) -> None:
        """Another instance's object was found in a shared tier: it can be served, its bytes are not ours."""
        state, name = self.tiers[tier], key.name()
        if name in state.entries:
            return
        entry = Entry(key, name, nbytes, num_tokens, codec, EntryState.READY, foreign=True)
        state.entries[name] = entry
        self._announce.admit(state, entry, "adopt")

    # --- pins --------------------------------------------------------------------------------------------------------

    def pin(self, tier: int, name: str, owner: str, ttl: float | None) -> bool:
        """Pin a readable object; False when the tier has none."""
        state = self.tiers[tier]
        entry = state.ready(name)
        if entry is None:
            return False
        state.pins.pin(name, owner, ttl)
        self._announce.event("pin", state.location, entry.key, entry.nbytes, owner)
        return True

    def unpin(self, tier: int, name: str, owner: str) -> bool:
        """Remove one owner's pin; whether there was one in force."""
        state = self.tiers[tier]
        entry = state.entries.get(name)
        if entry is None or not state.pins.unpin(name, owner):
            return False
        self._announce.event("unpin", state.location, entry.key, entry.nbytes, owner)
        return True
