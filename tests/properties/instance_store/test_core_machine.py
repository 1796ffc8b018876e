"""The cache core under every interleaving of writes, reads, removals and failures.

The machine is an adapter of its own, written as generators that stop at every point where a real one would wait for
I/O; Hypothesis chooses which of them goes on. Its tiers are dicts, so what is really there can be compared with what
the core believes and with what it announced.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lmcache_kit.clock import ManualClock
from lmcache_kit.contracts.placement import PlacementPolicy, Promotion
from lmcache_kit.contracts.records import EvictionPlugin
from lmcache_kit.errors import CapacityError
from lmcache_kit.instance.core.cache import CacheCore
from lmcache_kit.instance.core.events import CacheChange
from lmcache_kit.instance.core.tiers import EntryState, TierState
from lmcache_kit.kv.keys import ChunkKey
from lmcache_kit.plugins import registry

CHUNKS = [ChunkKey("m", value) for value in range(10)]
LOCATIONS = ["Fast", "Middle", "Slow"]

Process = Generator[None, str, Any]
"""An activity; each ``yield`` is a wait, and receives how the I/O that it waited for failed, or "".

``refused``: nothing was done, ``unknown`` and ``done``: nobody can say whether it was done; it was not, or was.
"""


class AnyPlacement(PlacementPolicy):
    """Whatever the test says, including answers that make no sense; ``demotion`` is how many tiers down."""

    def __init__(self, demotion: int | None, promotion: Promotion) -> None:
        self.store: list[int] = [0]
        self.promotion = promotion
        self.demotion = demotion

    def on_store(self, tiers, nbytes):
        return self.store

    def on_hit(self, tiers, tier, nbytes):
        return self.promotion

    def on_evict(self, tiers, tier, held, nbytes):
        assert tier not in held
        return None if self.demotion is None else tier + self.demotion


class CoreMachine(RuleBasedStateMachine):
    @initialize(
        policy=st.sampled_from(["lru", "fifo", "lfu", "mru", "arc"]),
        capacities=st.lists(st.sampled_from([24, 16, 40, 0, None]), min_size=3, max_size=3),
        demotion=st.sampled_from([1, 1, 2, None, 0, 9]),
        eager=st.sampled_from([0, 1, 3, 8]),
        promotion=st.sampled_from([Promotion(target=0, keep_source=keep) for keep in (False, True)]),
    )
    def begin(
        self, policy: str, capacities: list[int | None], demotion: int | None, eager: int, promotion: Promotion
    ) -> None:
        self.eager = eager
        record = registry().get(EvictionPlugin, policy)
        self.clock = ManualClock()
        self.placement = AnyPlacement(demotion, promotion)
        self.tiers = [
            TierState(index, LOCATIONS[index], cap, record.factory(record.options(), cap), self.clock)
            for index, cap in enumerate(capacities)
        ]
        self.core = CacheCore(self.tiers, self.placement, self.clock, on_change=self.change)
        self.bytes: list[dict[str, tuple[str, int]]] = [{} for _ in capacities]
        self.foreign: list[set[str]] = [set() for _ in capacities]
        self.announced: list[set[str]] = [set() for _ in capacities]
        self.processes: list[Process] = []
        self.pins: dict[tuple[int, str, str], float] = {}
        self.forced: set[tuple[int, str]] = set()

    # --- what the core says ---------------------------------------------------------------------------------------

    def change(self, change: CacheChange) -> None:
        tier, name = LOCATIONS.index(change.location), change.key.name()
        assert name in self.bytes[tier], "announced while its bytes are not there"
        if change.op == "admit":
            assert name not in self.announced[tier], "admitted twice"
            self.announced[tier].add(name)
        else:
            assert name in self.announced[tier], "evicted without having been admitted"
            assert (tier, name) in self.forced or not self.pinned(tier, name), "a pinned object is evicted"
            self.announced[tier].discard(name)

    def pinned(self, tier: int, name: str) -> bool:
        return any(
            until > self.clock.now() for (where, what, _), until in self.pins.items() if (where, what) == (tier, name)
        )

    # --- the adapter ----------------------------------------------------------------------------------------------

    def spawn(self, process: Process) -> None:
        """Run up to its first wait, and as many more as this example likes."""
        try:
            next(process)
        except StopIteration:
            return
        self.processes.append(process)
        self.step(process, self.eager, "")

    def write(self, ticket, nbytes: int | None = None) -> Process:
        """Whether it was written; ``nbytes`` when it really has fewer than the ticket says."""
        tier, name = ticket.tier, ticket.entry.name
        while True:
            while ticket.removals:
                if not (yield from self.carry_out(ticket.removals.pop(0))):
                    self.core.abort(ticket)
                    return False
            if self.core.start(ticket):
                break
            try:
                again = self.core.plan(ticket)
            except CapacityError:
                self.core.abort(ticket)
                return False
            if not again:
                yield
        failure = yield
        if failure in ("", "done"):
            self.bytes[tier][name] = (name, ticket.nbytes if nbytes is None else nbytes)
            self.foreign[tier].discard(name)
        if failure == "":
            self.core.commit(ticket)
        elif failure == "refused":
            self.core.abort(ticket)
        else:
            self.core.doubt_write(ticket)
        return failure == ""

    def read_bytes(self, tier: int, entry) -> int:
        """The size of what is there: the account's, or less after a rewrite that nobody knows the end of."""
        found, nbytes = self.bytes[tier][entry.name]  # a KeyError is an object freed under its reader
        assert found == entry.name
        assert nbytes == entry.nbytes or (not entry.codec and nbytes <= entry.nbytes)
        return nbytes

    def carry_out(self, removal) -> Process:
        """Whether the object is gone."""
        tier, name = removal.tier, removal.entry.name
        if removal.demotion is not None:
            if (yield):
                self.core.abort(removal.demotion)
            else:
                yield from self.write(removal.demotion, self.read_bytes(tier, removal.entry))
        self.core.retire(removal)
        while removal.entry.readers:
            yield
        failure = yield
        if failure == "refused":
            self.core.revive(removal)
            return False
        if failure in ("", "done"):
            self.bytes[tier].pop(name, None)
        if failure:
            self.core.doubt_removal(removal)
            return False
        self.foreign[tier].discard(name)
        self.core.forget(removal)
        return True

    def put(self, tier: int, key: ChunkKey, nbytes: int, protect: frozenset[str]) -> Process:
        if self.tiers[tier].state(key.name()) is not EntryState.ABSENT:
            return
        before = self.snapshot()
        try:
            ticket = self.core.begin_put(
                tier, key, nbytes=nbytes, num_tokens=1, codec="naive", cause="store", protect=protect
            )
        except CapacityError:
            assert self.snapshot() == before, "a refused write changed something"
            return
        assert not protect & {removal.entry.name for removal in ticket.removals}
        yield from self.write(ticket)

    def rewrite(self, tier: int, key: ChunkKey, nbytes: int) -> Process:
        entry = self.core.acquire(tier, key.name())
        if entry is None:
            return
        try:
            if (yield) or entry.rewriting or entry.state is not EntryState.READY:
                return
            try:
                ticket = self.core.begin_rewrite(tier, entry, nbytes=nbytes, codec="zstd")
            except CapacityError:
                return
            yield from self.write(ticket)
        finally:
            self.core.release(tier, entry)

    def read(self, tier: int, key: ChunkKey) -> Process:
        name = key.name()
        entry = self.core.acquire(tier, name)
        if entry is None:
            return
        yield
        yield
        nbytes = self.read_bytes(tier, entry)
        self.core.learn(tier, entry, nbytes=nbytes, codec="learned")
        self.core.release(tier, entry)
        promotion = self.core.hit(tier, key, nbytes)
        if promotion is not None:
            assert self.tiers[promotion.target].state(name) is EntryState.ABSENT
            yield from self.put(promotion.target, key, nbytes, frozenset())
            if not promotion.keep_source and self.tiers[promotion.target].ready(name):
                yield from self.remove(tier, name, force=False)

    def remove(self, tier: int, name: str, *, force: bool) -> Process:
        pinned = self.pinned(tier, name)
        if force:
            self.forced.add((tier, name))
        removal = self.core.begin_remove(tier, name, cause="damaged" if force else "clear", force=force)
        self.forced.discard((tier, name))
        if removal is not None:
            assert force or not pinned
            gone = yield from self.carry_out(removal)
            if gone:
                self.pins = {pin: until for pin, until in self.pins.items() if pin[:2] != (tier, name)}

    def snapshot(self) -> list[Any]:
        return [
            (tier.held, tier.claimed, tier.leaving, {name: entry.state for name, entry in tier.entries.items()})
            for tier in self.tiers
        ]

    # --- rules ----------------------------------------------------------------------------------------------------

    def pick(self, number: int) -> tuple[int, ChunkKey] | None:
        """One of the objects that are there, in any state."""
        there = [(tier.index, entry.key) for tier in self.tiers for entry in tier.entries.values()]
        return there[number % len(there)] if there else None

    @rule(
        wanted=st.lists(st.integers(0, 3), min_size=1, max_size=3),
        key=st.sampled_from(CHUNKS),
        nbytes=st.integers(1, 20),
        protect=st.sets(st.sampled_from(CHUNKS), max_size=2),
    )
    def store(self, wanted: list[int], key: ChunkKey, nbytes: int, protect: set[ChunkKey]) -> None:
        self.placement.store = wanted
        for tier in self.core.store_targets(nbytes):
            self.spawn(self.put(tier, key, nbytes, frozenset(other.name() for other in protect)))

    @rule(keys=st.lists(st.sampled_from(CHUNKS), min_size=3, max_size=8), nbytes=st.integers(6, 12))
    def flood(self, keys: list[ChunkKey], nbytes: int) -> None:
        for key in keys:
            self.spawn(self.put(0, key, nbytes, frozenset()))

    @rule(number=st.integers(0, 20), nbytes=st.integers(1, 30))
    def start_rewrite(self, number: int, nbytes: int) -> None:
        if (place := self.pick(number)) is not None:
            self.spawn(self.rewrite(*place, nbytes))

    @rule(number=st.integers(0, 20))
    def start_read(self, number: int) -> None:
        if (place := self.pick(number)) is not None:
            self.spawn(self.read(*place))

    @rule(number=st.integers(0, 20), force=st.booleans())
    def start_remove(self, number: int, force: bool) -> None:
        if (place := self.pick(number)) is not None:
            self.spawn(self.remove(place[0], place[1].name(), force=force))

    @rule(tier=st.integers(0, 2), key=st.sampled_from(CHUNKS), nbytes=st.integers(1, 30), rare=st.integers(0, 3))
    def adopt(self, tier: int, key: ChunkKey, nbytes: int, rare: int) -> None:
        name = key.name()
        if rare or self.tiers[tier].state(name) is not EntryState.ABSENT:
            return
        self.bytes[tier][name] = (name, nbytes)
        self.foreign[tier].add(name)
        self.core.adopt(tier, key, nbytes=nbytes, num_tokens=1, codec="")

    @rule(number=st.integers(0, 20), owner=st.sampled_from(["", "a"]), ttl=st.sampled_from([None, 1.0, 3.0]))
    def pin(self, number: int, owner: str, ttl: float | None) -> None:
        if (place := self.pick(number)) is None:
            return
        tier, name = place[0], place[1].name()
        if self.core.pin(tier, name, owner, ttl):
            self.pins[tier, name, owner] = float("inf") if ttl is None else self.clock.now() + ttl

    @precondition(lambda self: self.pins)
    @rule(number=st.integers(0, 20))
    def unpin(self, number: int) -> None:
        tier, name, owner = sorted(self.pins)[number % len(self.pins)]
        expected = self.pins.pop((tier, name, owner)) > self.clock.now()
        assert self.core.unpin(tier, name, owner) == expected

    @precondition(lambda self: self.pins)
    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.processes)
    @rule(
        choice=st.integers(0, 1000),
        steps=st.integers(1, 6),
        fail=st.sampled_from([""] * 6 + ["refused", "unknown", "done"]),
    )
    def go_on(self, choice: int, steps: int, fail: str) -> None:
        self.step(self.processes[choice % len(self.processes)], steps, fail)

    def step(self, process: Process, steps: int, fail: str) -> None:
        try:
            for _ in range(steps):
                process.send(fail)
        except StopIteration:
            self.processes.remove(process)

    # --- what must hold -------------------------------------------------------------------------------------------

    @invariant()
    def accounts_are_true(self) -> None:
        for tier, there, foreign in zip(self.tiers, self.bytes, self.foreign, strict=True):
            really = sum(nbytes for name, (_, nbytes) in there.items() if name not in foreign)
            assert really <= tier.held, "more is there than the account says"
            assert tier.capacity is None or tier.held <= tier.capacity, "over capacity"
            assert tier.claimed >= 0
            assert 0 <= tier.leaving <= tier.held

    @invariant()
    def contents_are_as_announced(self) -> None:
        for tier, there, announced in zip(self.tiers, self.bytes, self.announced, strict=True):
            assert {entry.name for entry in tier.listed()} == announced
            assert announced <= there.keys()
            assert sorted(tier.policy.victims()) == sorted(
                entry.name
                for entry in tier.entries.values()
                if entry.state in (EntryState.READY, EntryState.DOUBTFUL) and not entry.foreign
            )

    @invariant()
    def pins_hold(self) -> None:
        for (tier, name, _), until in self.pins.items():
            if until > self.clock.now() and (tier, name) not in self.forced:
                entry = self.tiers[tier].entries.get(name)
                assert entry is not None
                assert self.tiers[tier].pins.pinned(name)

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        for _ in range(500):
            if not self.processes:
                break
            for process in list(self.processes):
                self.step(process, 1, "")
        assert not self.processes, "somebody waits for ever"
        for tier, there, foreign in zip(self.tiers, self.bytes, self.foreign, strict=True):
            assert (tier.claimed, tier.leaving) == (0, 0)
            assert tier.held == sum(entry.nbytes for entry in tier.entries.values() if not entry.foreign)
            for entry in tier.entries.values():
                assert entry.readers == 0
                assert not entry.rewriting
                assert entry.listed == (entry.state is EntryState.READY)
                if entry.state is EntryState.READY and entry.codec:
                    assert there[entry.name] == (entry.name, entry.nbytes)
                elif entry.name in there and entry.name not in foreign:
                    assert there[entry.name][1] <= entry.nbytes
                assert entry.state in (EntryState.READY, EntryState.DOUBTFUL)
            assert there.keys() <= tier.entries.keys()


TestCoreMachine = CoreMachine.TestCase
TestCoreMachine.settings = settings(
    max_examples=150,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
