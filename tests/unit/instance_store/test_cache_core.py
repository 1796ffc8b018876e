"""Decisions of the core, one at a time; the state machine in tests/properties drives it through all orders."""

import pytest

from lmcache_kit.clock import ManualClock
from lmcache_kit.contracts.placement import PlacementPolicy, Promotion
from lmcache_kit.contracts.records import EvictionPlugin
from lmcache_kit.errors import CapacityError, UnknownNameError
from lmcache_kit.instance.core.cache import CacheCore
from lmcache_kit.instance.core.tiers import EntryState, TierState
from lmcache_kit.kv.keys import ChunkKey
from lmcache_kit.plugins import registry

A, B, C, D = (ChunkKey("m", value) for value in range(4))


class Placement(PlacementPolicy):
    store, idle, hit, evict = (0,), (), None, None

    def on_store(self, tiers, nbytes):
        return self.store

    def on_idle(self, tiers, held, nbytes):
        return self.idle

    def on_hit(self, tiers, tier, nbytes):
        return self.hit

    def on_evict(self, tiers, tier, held, nbytes):
        return self.evict


class Bench:
    def __init__(self, *capacities, writable=True):
        self.clock, self.placement, self.log, self.events = ManualClock(), Placement(), [], []
        record = registry().get(EvictionPlugin, "lru")
        tiers = [
            TierState(index, f"T{index}", cap, record.factory(record.options(), cap), self.clock, writable)
            for index, cap in enumerate(capacities)
        ]
        self.core = CacheCore(
            tiers,
            self.placement,
            self.clock,
            on_change=lambda change: self.log.append(f"{change.op} {change.location} {change.key.hash}"),
            on_event=self.events.append,
        )
        self.tiers = tiers

    def begin(self, tier, key, nbytes=10, **more):
        more = {"num_tokens": 1, "codec": "naive", "cause": "store", **more}
        return self.core.begin_put(tier, key, nbytes=nbytes, **more)

    def put(self, tier, key, nbytes=10, **more):
        ticket = self.begin(tier, key, nbytes, **more)
        self.finish(ticket)
        return ticket

    def finish(self, ticket):
        while ticket.removals:
            removal = ticket.removals.pop(0)
            if removal.demotion:
                self.finish(removal.demotion)
            self.core.retire(removal)
            self.core.forget(removal)
        assert self.core.start(ticket)
        self.core.commit(ticket)


def test_nothing_is_announced_before_the_commit():
    bench = Bench(100)
    ticket = bench.begin(0, A)
    assert bench.tiers[0].state(A.name()) is EntryState.WRITING
    assert bench.core.holders(A.name()) == []
    assert bench.core.acquire(0, A.name()) is None
    assert bench.core.start(ticket)
    assert bench.log == []
    bench.core.commit(ticket)
    assert bench.log == ["admit T0 0"]
    assert bench.core.holders(A.name()) == [0]


def test_eviction_follows_the_policy_and_is_announced_before_the_bytes_go():
    bench = Bench(20)
    bench.put(0, A)
    bench.put(0, B)
    bench.core.hit(0, A, 10)
    ticket = bench.begin(0, C)
    assert [removal.entry.key for removal in ticket.removals] == [B]
    assert bench.log[-1] == "evict T0 1"
    assert bench.tiers[0].held == 20
    assert not bench.core.start(ticket), "B's bytes are still there"
    bench.finish(ticket)
    assert bench.tiers[0].held == 20


def test_what_is_pinned_read_or_protected_is_not_evicted():
    bench = Bench(30)
    for key in (A, B, C):
        bench.put(0, key)
    bench.core.pin(0, A.name(), "", None)
    reader = bench.core.acquire(0, B.name())
    with pytest.raises(CapacityError, match="T0 has no room: 10 of its 30 bytes more"):
        bench.begin(0, D, protect=frozenset({C.name()}))
    assert [entry.state for entry in bench.tiers[0].entries.values()] == [EntryState.READY] * 3
    assert bench.tiers[0].planned == 30
    assert [removal.entry.key for removal in bench.begin(0, D).removals] == [C]
    bench.core.release(0, reader)


def test_an_object_larger_than_the_tier_evicts_nothing():
    bench = Bench(20)
    bench.put(0, A)
    with pytest.raises(CapacityError, match="21 bytes do not fit into T0 of 20 bytes"):
        bench.begin(0, B, 21)
    assert bench.core.holders(A.name()) == [0]


def test_read_only_tiers_take_nothing():
    bench = Bench(None, writable=False)
    bench.placement.store = (0, 5, -1)
    assert bench.core.store_targets(1) == []
    with pytest.raises(CapacityError, match="read-only"):
        bench.begin(0, A)


def test_to_the_policy_a_tier_that_refused_is_not_writable():
    bench = Bench(10, 10)
    seen = []
    bench.placement.on_store = lambda tiers, nbytes: seen.append([tier.writable for tier in tiers]) or (0, 1)
    assert bench.core.store_targets(1) == [0, 1]
    assert bench.core.store_targets(1, {0}) == [1], "a policy that asks for it all the same is not heard"
    assert seen == [[True, True], [False, True]]


def test_a_demotion_is_decided_with_the_eviction_and_admitted_before_it():
    bench = Bench(10, 10)
    bench.placement.evict = 1
    bench.put(0, A)
    bench.put(1, B)
    ticket = bench.begin(0, C)
    (removal,) = ticket.removals
    assert removal.demotion is not None
    assert [inner.entry.key for inner in removal.demotion.removals] == [B]
    assert bench.core.in_tiers(A.name(), EntryState.WRITING) == [1]
    assert [entry.key for entry in bench.tiers[0].listed()] == [A]
    bench.finish(ticket)
    assert bench.log == ["admit T0 0", "admit T1 1", "evict T1 1", "admit T1 0", "evict T0 0", "admit T0 2"]
    assert [event.cause for event in bench.events if event.op == "evict"] == ["capacity", "demote"]


@pytest.mark.parametrize("target", [0, -1, 7, None])
def test_demotions_go_down_only(target):
    bench = Bench(10, 10)
    bench.placement.evict = target
    bench.put(0, A)
    assert bench.begin(0, B).removals[0].demotion is None
    assert bench.log == ["admit T0 0", "evict T0 0"]


def test_a_demotion_that_finds_no_room_is_a_plain_eviction():
    bench = Bench(10, 10)
    bench.placement.evict = 1
    bench.put(0, A)
    bench.put(1, B)
    bench.core.pin(1, B.name(), "", None)
    assert bench.begin(0, C).removals[0].demotion is None
    assert bench.core.holders(B.name()) == [1]


def test_abort_undoes_every_removal_that_was_not_carried_out():
    bench = Bench(30, 30)
    bench.placement.evict = 1
    for key in (A, B):
        bench.put(0, key)
    bench.put(1, C, 25)
    ticket = bench.begin(0, D, 30)
    assert len(ticket.removals) == 2
    assert bench.log[-1] == "evict T1 2"
    bench.core.abort(ticket)
    assert [(tier.held, tier.claimed, tier.leaving) for tier in bench.tiers] == [(20, 0, 0), (25, 0, 0)]
    assert bench.core.holders(A.name()) == bench.core.holders(B.name()) == [0]
    assert bench.core.holders(C.name()) == [1]
    assert bench.log[-1] == "admit T1 2"
    assert sorted(bench.tiers[0].policy.victims()) == [A.name(), B.name()]
    assert list(bench.tiers[1].policy.victims()) == [C.name()]
    bench.put(0, D, 30)


def test_abort_after_start_gives_the_bytes_back():
    bench = Bench(10)
    ticket = bench.begin(0, A)
    assert bench.core.start(ticket)
    assert bench.tiers[0].held == 10
    bench.core.abort(ticket)
    assert (bench.tiers[0].held, bench.tiers[0].planned, bench.log) == (0, 0, [])
    bench.put(0, A)


def test_a_deletion_that_failed_brings_the_object_back():
    bench = Bench(10)
    bench.put(0, A)
    removal = bench.core.begin_remove(0, A.name(), cause="clear")
    bench.core.revive(removal)
    assert bench.log == ["admit T0 0", "evict T0 0", "admit T0 0"]
    assert (bench.tiers[0].held, bench.tiers[0].leaving) == (10, 0)
    assert bench.core.holders(A.name()) == [0]


def test_a_rewrite_accounts_for_the_larger_encoding_until_it_is_swapped():
    bench = Bench(30)
    bench.put(0, A, 20)
    entry = bench.core.acquire(0, A.name())
    smaller = bench.core.begin_rewrite(0, entry, nbytes=5, codec="zstd")
    assert bench.core.start(smaller)
    assert bench.tiers[0].held == 20
    bench.core.commit(smaller)
    assert (bench.tiers[0].held, entry.codec, entry.nbytes) == (5, "zstd", 5)
    bench.put(0, B, 20)
    larger = bench.core.begin_rewrite(0, entry, nbytes=20, codec="naive")
    assert [removal.entry.key for removal in larger.removals] == [B]
    bench.finish(larger)
    assert bench.tiers[0].held == 20
    assert bench.log == ["admit T0 0", "admit T0 1", "evict T0 1"]


def test_a_rewrite_that_cannot_fit_changes_nothing():
    bench = Bench(20)
    bench.put(0, A, 10)
    bench.put(0, B, 10)
    bench.core.pin(0, B.name(), "x", None)
    entry = bench.core.acquire(0, A.name())
    for nbytes in (11, 21):
        with pytest.raises(CapacityError):
            bench.core.begin_rewrite(0, entry, nbytes=nbytes, codec="naive")
    assert not entry.rewriting
    assert (bench.tiers[0].planned, bench.tiers[0].held) == (20, 20)


def test_an_object_removed_while_it_is_read_keeps_its_room_until_the_read_ends():
    bench = Bench(10)
    bench.put(0, A)
    entry = bench.core.acquire(0, A.name())
    removal = bench.core.begin_remove(0, A.name(), cause="clear")
    assert bench.log[-1] == "evict T0 0"
    with pytest.raises(CapacityError):
        bench.begin(0, B)
    bench.core.release(0, entry)
    ticket = bench.begin(0, B)
    assert not bench.core.start(ticket)
    bench.core.forget(removal)
    assert bench.core.start(ticket)


def test_pins_end_with_time_and_with_the_object():
    bench = Bench(10)
    bench.put(0, A)
    assert bench.core.pin(0, A.name(), "x", 5)
    assert not bench.core.pin(0, B.name(), "x", 5)
    assert bench.core.begin_remove(0, A.name(), cause="clear") is None
    bench.clock.advance(5)
    bench.core.forget(bench.core.begin_remove(0, A.name(), cause="clear"))
    bench.put(0, A)
    bench.core.pin(0, A.name(), "y", None)
    bench.core.forget(bench.core.begin_remove(0, A.name(), cause="damaged", force=True))
    bench.put(0, A)
    assert not bench.core.unpin(0, A.name(), "y")


@pytest.mark.parametrize("target", [0, 2, -1])
def test_promotions_that_make_no_sense_are_ignored(target):
    bench = Bench(10, 10)
    bench.put(0, A)
    bench.put(1, A)
    bench.placement.hit = Promotion(target=target, keep_source=True)
    assert bench.core.hit(1, A, 10) is None


def test_write_back_goes_where_the_object_is_not():
    bench = Bench(10, 10, 5)
    bench.placement.idle = (0, 1, 1, 2, 9)
    bench.put(0, A)
    assert bench.core.idle_targets(A.name()) == [1]
    assert bench.core.idle_targets(B.name()) == []


def test_recovery_announces_only_what_stays():
    bench = Bench(20)
    for key in (A, B, C):
        bench.core.restore(0, key, nbytes=10, num_tokens=1, codec="naive")
    removals = bench.core.trim(0)
    assert [removal.entry.key for removal in removals] == [A]
    for removal in removals:
        bench.core.retire(removal)
        bench.core.forget(removal)
    bench.core.announce_restored(0)
    bench.core.announce_restored(0)
    assert bench.log == ["admit T0 1", "admit T0 2"]
    assert bench.tiers[0].held == 20


def test_what_others_wrote_is_served_but_not_counted_or_evicted():
    bench = Bench(10)
    bench.core.adopt(0, A, nbytes=1000, num_tokens=1, codec="")
    bench.core.adopt(0, A, nbytes=1000, num_tokens=1, codec="")
    assert bench.log == ["admit T0 0"]
    assert bench.tiers[0].held == 0
    bench.core.hit(0, A, 1000)
    bench.put(0, B)
    with pytest.raises(CapacityError):
        bench.begin(0, C, 11)
    bench.core.forget(bench.core.begin_remove(0, A.name(), cause="missing"))
    assert (bench.tiers[0].held, bench.tiers[0].leaving) == (10, 0)


def test_the_same_calls_give_the_same_events():
    def run():
        bench = Bench(20, 30)
        bench.placement.evict = 1
        for key in (A, B, C, D, A):
            if bench.tiers[0].ready(key.name()) is None:
                bench.put(0, key)
            bench.clock.advance(1)
        return bench.events

    assert run() == run()
    assert [event.time for event in run() if event.op == "admit" and event.location == "T0"] == [0, 1, 2, 3, 4]


def test_unknown_location_names_the_known_ones():
    with pytest.raises(UnknownNameError) as caught:
        Bench(1, 1).core.tier("T3")
    assert caught.value.known == ["T0", "T1"]
