"""A whole instance, one operation after another, against dictionaries of bytes.

What is really there is read from the backends, which are dictionaries that can be broken and damaged; what a prompt's
chunks are called is worked out anew. So it is known before each operation what it must give: how long a prefix is,
from which tier each chunk comes, what is pinned, what a job leaves behind, and which object goes first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lmcache_kit.clock import ManualClock
from lmcache_kit.contracts.records import EvictionPlugin, PlacementPlugin
from lmcache_kit.contracts.storage import StorageBackend
from lmcache_kit.errors import CapacityError, ConflictError, NotFoundError, UnavailableError
from lmcache_kit.instance.core.events import CacheChange, CacheEvent
from lmcache_kit.instance.core.tiers import Tier
from lmcache_kit.instance.store.codecs import CodecSet
from lmcache_kit.instance.store.store import KVStore
from lmcache_kit.kv import ChunkHasher, HashSpec, KVLayout, KVTensor
from lmcache_kit.plugins import registry

LAYOUT = KVLayout(1, 1, 4, "float16")
CHUNK = 4
LARGEST = LAYOUT.nbytes(CHUNK) + 140
"""No stored chunk is larger, in whatever method: those of one value take fewer bytes, and a frame adds a few."""
LOCATIONS = ["LocalCPUBackend", "LocalDiskBackend", "RemoteBackend"]
CODECS = CodecSet()
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ORDERED = ("lru", "fifo")
"""Policies whose next victim is worked out here."""


def chain(tokens: list[int]) -> list[tuple[str, int]]:
    """(storage name, tokens covered) of each chunk, written out anew."""
    parent, found = 0, []
    for start in range(0, len(tokens), CHUNK):
        part = tuple(tokens[start : start + CHUNK])
        parent = hash((parent, part, ()))
        found.append((f"m.{parent:x}" if parent >= 0 else f"m.n{-parent:x}", start + len(part)))
    return found


def kv_of(tokens: list[int]) -> KVTensor:
    """Each token's KV depends on all tokens up to it, as in a model; half of it compresses."""
    state, rows = 7, []
    for token in tokens:
        state = (state * 31 + token) % 10007
        rows.append([state % 97, state % 89, 0, 0])
    shape = LAYOUT.shape(len(tokens))
    values = np.broadcast_to(np.array(rows).reshape(1, 1, len(tokens), 1, 4), shape)
    return KVTensor(LAYOUT, np.ascontiguousarray(values.astype(LAYOUT.np_dtype)))


def prompt(symbols: str, tail: int) -> list[int]:
    """A chunk for each symbol, and the begin of another."""
    return [10 * ord(symbol) + index for symbol in symbols for index in range(CHUNK)] + [50] * tail


PROMPTS = [prompt(symbols, tail) for symbols in ("a", "b", "ab", "aa", "abb", "bab") for tail in (0, 2)] + [
    prompt("", 3)
]
prompts = st.sampled_from(PROMPTS)


@dataclass
class Shelf(StorageBackend):
    """A dictionary. ``down``: no call works; ``late``: each works and says that it did not; ``crammed``: puts fail;
    ``blind``: gets fail."""

    objects: dict[str, bytes] = field(default_factory=dict)
    mode: str = ""
    peak: int = 0

    def before(self) -> None:
        if self.mode == "down":
            raise UnavailableError("told to be down")

    def after(self) -> None:
        if self.mode == "late":
            raise OSError("told to fail late")

    def put(self, name, blob):
        self.before()
        if self.mode == "crammed":
            raise CapacityError("told to have no room")
        self.objects[name] = bytes(blob)
        self.peak = max(self.peak, sum(map(len, self.objects.values())))
        self.after()

    def get(self, name):
        self.before()
        self.after()
        if self.mode == "blind":
            raise OSError("told to read nothing")
        return self.objects.get(name)

    def delete(self, name):
        self.before()
        there = self.objects.pop(name, None) is not None
        self.after()
        return there

    def size(self, name):
        self.before()
        blob = self.objects.get(name)
        self.after()
        return None if blob is None else len(blob)

    def entries(self):
        self.before()
        return iter([(name, len(blob)) for name, blob in self.objects.items()])


class StoreMachine(RuleBasedStateMachine):
    @initialize(
        capacities=st.lists(st.sampled_from([2, 1, 3, 5, None, 0]), min_size=1, max_size=3),
        policy=st.sampled_from(["lru", "lru", "fifo", "lfu", "mru", "arc"]),
        placement=st.sampled_from(["broadcast", "write_back", "demote"]),
        method=st.sampled_from(["naive", "naive", "zstd"]),
        faulty=st.booleans(),
    )
    def begin(self, capacities: list[int | None], policy: str, placement: str, method: str, faulty: bool) -> None:
        self.faulty = faulty
        self.runner = asyncio.Runner()
        self.clock = ManualClock()
        self.capacities = [None if count is None else count * LARGEST for count in capacities]
        self.policy, self.placement, self.method = policy, placement, method
        self.shelves = [Shelf() for _ in capacities]
        self.pins: dict[tuple[int, str, str], float] = {}
        self.damage: set[bytes] = set()
        self.known: dict[str, int] = {}
        self.full: set[int] = set()
        self.doubt = False
        self.events = 0
        self.wrong: list[Exception] = []
        self.open()

    def open(self) -> None:
        self.announced: list[dict[str, None]] = [{} for _ in self.shelves]
        self.order: list[list[str]] = [[] for _ in self.shelves]
        eviction, placing = registry().get(EvictionPlugin, self.policy), registry().get(PlacementPlugin, self.placement)
        self.store = KVStore(
            model="m",
            layout=LAYOUT,
            hasher=ChunkHasher(HashSpec(CHUNK)),
            tiers=[
                Tier(
                    location=LOCATIONS[index],
                    backend=shelf,
                    capacity_bytes=capacity,
                    policy=eviction.factory(eviction.options(), capacity),
                    inline=index == 0,
                    persistent=index > 0,
                )
                for index, (shelf, capacity) in enumerate(zip(self.shelves, self.capacities, strict=True))
            ],
            placement=placing.factory(placing.options()),
            codecs=CODECS,
            clock=self.clock,
            on_change=self.kept(self.change),
            on_event=self.kept(self.event),
            threads=1,
            store_codec=self.method,
        )
        self.run(self.store.open())

    def run(
        self,
        work: Any,
        about: set[str] = frozenset(),
        *,
        protected: bool = False,
        saved: list[str] | None = None,
        served: list[str] | None = None,
    ) -> Any:
        """The answer, once all that follows from it is done too; what it is about may stay when others go.

        ``saved`` and ``served`` are the chunks of a prompt, front first, that it saves or reads.
        """
        self.about, self.protected = about, protected
        self.copied_to: set[int] = set()
        self.owed: dict[tuple[int, str], str] = {}  # what had to go before another object, and perhaps is on its way

        async def whole() -> Any:
            answer = await work
            if saved is not None:
                self.front_last(saved, range(len(self.shelves)))
            await asyncio.wait_for(self.store.drain(), 60)
            self.front_last(saved or served or [], self.copied_to)
            return answer

        answer = self.runner.run(whole())
        assert not self.owed, "these had to go first"
        return answer

    def front_last(self, names: list[str], tiers: Iterable[int]) -> None:
        """Of a prompt that was written to some tiers the front is the last to go."""
        if self.policy == "lru":
            for order in (self.order[tier] for tier in tiers):
                for name in reversed(names):
                    if name in order:
                        order.remove(name)
                        order.append(name)

    def kept(self, listener: Callable[[Any], None]) -> Callable[[Any], None]:
        """What a listener complains of is kept: within a job an error of any kind is the job's failure, and no more."""

        def listen(said: Any) -> None:
            try:
                listener(said)
            except Exception as error:
                self.wrong.append(error)

        return listen

    # --- what the store says ------------------------------------------------------------------------------------------

    def change(self, change: CacheChange) -> None:
        tier, name = LOCATIONS.index(change.location), change.key.name()
        assert (change.op == "admit") == (name not in self.announced[tier])
        assert name in self.shelves[tier].objects, "announced while it is not there"
        if change.op == "admit":
            self.announced[tier][name] = None
        else:
            del self.announced[tier][name]

    def event(self, event: CacheEvent) -> None:
        if event.op == "miss":
            return
        tier, name = LOCATIONS.index(event.location), event.key.name()
        order = self.order[tier]
        if event.op in ("admit", "revive"):
            order.append(name)
            if event.cause in ("promote", "write_back"):
                self.copied_to.add(tier)
        elif event.op == "hit" and self.policy == "lru" and name in order:
            order.remove(name)
            order.append(name)
        elif event.op == "evict":
            if event.cause in ("capacity", "demote"):
                assert not self.pinned(tier, name), "a pinned object is evicted"
                assert not (self.protected and name in self.about), "what an operation is about makes room for it"
                if self.policy in ORDERED and not self.doubt:
                    for other in order[: order.index(name)]:
                        if not self.pinned(tier, other) and other not in self.about:
                            self.owed[tier, other] = name
            elif event.cause in ("damaged", "missing"):
                self.pins = {pin: until for pin, until in self.pins.items() if pin[:2] != (tier, name)}
            else:
                assert not self.pinned(tier, name)
            order.remove(name)
            self.owed.pop((tier, name), None)

    # --- the oracle ---------------------------------------------------------------------------------------------------

    def pinned(self, tier: int, name: str) -> bool:
        now = self.clock.now()
        return any(until > now for (where, what, _), until in self.pins.items() if (where, what) == (tier, name))

    def up(self) -> list[int]:
        """Tiers that can be read."""
        return [tier for tier, shelf in enumerate(self.shelves) if shelf.mode in ("", "crammed")]

    def sound(self, tier: int, name: str) -> bool:
        return name in self.announced[tier] and self.shelves[tier].objects[name] not in self.damage

    def prefix(self, tokens: list[int], tiers: list[int]) -> list[tuple[str, int]]:
        """The chunks from the first on that one of the tiers can serve."""
        found = []
        for name, stop in chain(tokens):
            if not any(self.sound(tier, name) for tier in tiers):
                break
            found.append((name, stop))
        return found

    def in_tier(self, tier: int, tokens: list[int] | None) -> list[str]:
        names = self.announced[tier] if tokens is None else [name for name, _ in chain(tokens)]
        return [name for name in names if name in self.announced[tier]]

    def tokens_of(self, names: list[str]) -> int:
        return sum(self.known[name] for name in names)

    # --- the engine's side --------------------------------------------------------------------------------------------

    @rule(several=st.lists(prompts, min_size=2, max_size=4))
    def save_several(self, several: list[list[int]]) -> None:
        for tokens in several:
            self.save(tokens)

    @rule(tokens=prompts)
    def save_one(self, tokens: list[int]) -> None:
        self.save(tokens)

    def save(self, tokens: list[int]) -> None:
        chunks = chain(tokens)
        self.known |= {name: stop - (stop - 1) // CHUNK * CHUNK for name, stop in chunks}
        there = {name for name, _ in chunks if any(name in self.announced[tier] for tier in self.up())}
        names = [name for name, _ in chunks]
        result = self.run(self.store.save(tokens, kv_of(tokens)), set(names), protected=True, saved=names)
        assert result.errors or result.num_tokens + result.held_tokens == len(tokens)
        assert result.num_tokens <= len(tokens) - self.tokens_of(sorted(there)) or self.doubt
        if not self.troubled() and not self.full:
            after = {name for tier in self.up() for name in self.announced[tier]}
            others = [name for name in self.announced[0] if name not in dict(chunks) and self.pinned(0, name)]
            room = self.capacities[0]
            if room is None or room >= LARGEST * (len(chunks) + len(others)):
                assert dict(chunks).keys() <= after, "it would fit"
            front = [name for name, stop in chunks if stop <= result.num_tokens + result.held_tokens]
            assert set(front) <= after, "it says that these are there"

    @rule(several=st.lists(prompts, min_size=2, max_size=5))
    def load_several(self, several: list[list[int]]) -> None:
        for tokens in several:
            self.load(tokens, None)

    @rule(tokens=prompts, limit=st.integers(0, 14))
    def load_some(self, tokens: list[int], limit: int) -> None:
        self.load(tokens, limit)

    def load(self, tokens: list[int], limit: int | None) -> None:
        most = len(tokens) if limit is None else min(limit, len(tokens))
        want = [(name, stop) for name, stop in self.prefix(tokens, self.up()) if stop - self.known[name] < most]
        covered = min(most, want[-1][1]) if want else 0
        places = [next(tier for tier in self.up() if self.sound(tier, name)) for name, _ in want]
        names = [name for name, _ in want]
        loaded = self.run(self.store.load_prefix(tokens, limit=limit), set(names), protected=True, served=names)
        assert loaded.num_tokens == covered
        assert [hit.location for hit in loaded.hits] == [LOCATIONS[tier] for tier in places]
        assert (loaded.kv is None) == (covered == 0)
        if loaded.kv is not None:
            assert bytes(loaded.kv.tobytes_view()) == bytes(kv_of(tokens[:covered]).tobytes_view())

    # --- the controller's side ----------------------------------------------------------------------------------------

    def place(self, number: int) -> int:
        return number % len(self.shelves)

    @rule(number=st.integers(0, 2), tokens=prompts, owner=st.sampled_from(["", "a"]), ttl=st.sampled_from([None, 2]))
    def pin(self, number: int, tokens: list[int], owner: str, ttl: float | None) -> None:
        tier = self.place(number)
        there = self.in_tier(tier, tokens)
        try:
            pinned = self.store.pin(LOCATIONS[tier], tokens, owner=owner, ttl=ttl)
        except NotFoundError:
            assert not there
            return
        assert pinned == self.tokens_of(there) > 0
        until = float("inf") if ttl is None else self.clock.now() + ttl
        self.pins |= {(tier, name, owner): until for name in there}

    @rule(number=st.integers(0, 2), tokens=st.none() | prompts, owner=st.sampled_from(["", "a"]))
    def unpin(self, number: int, tokens: list[int] | None, owner: str) -> None:
        tier, now = self.place(number), self.clock.now()
        names = {name for where, name, _ in self.pins if where == tier}
        if tokens is not None:
            names &= {name for name, _ in chain(tokens)}
        held = [name for name in sorted(names) if self.pins.get((tier, name, owner), -1.0) > now]
        assert self.store.unpin(LOCATIONS[tier], tokens, owner=owner) == self.tokens_of(held)
        for name in held:
            del self.pins[tier, name, owner]

    @precondition(lambda self: self.pins)
    @rule()
    def time_passes(self) -> None:
        self.clock.advance(1)

    @rule(number=st.integers(0, 2))
    def clear(self, number: int) -> None:
        tier = self.place(number)
        before = self.in_tier(tier, None)
        kept = [name for name in before if self.pinned(tier, name)]
        try:
            cleared = self.run(self.store.clear(LOCATIONS[tier]))
        except UnavailableError:
            assert self.shelves[tier].mode
            self.doubt = True
            return
        assert cleared == self.tokens_of(before) - self.tokens_of(kept)
        assert set(self.announced[tier]) == set(kept)

    def job(self, start: Any, names: list[str], *, protected: bool = False) -> Any:
        """How the job ended; None when it was refused."""
        self.events += 1
        event = f"event{self.events}"

        async def begin() -> None:
            start(event)

        try:
            self.run(begin(), set(names), protected=protected)
        except (NotFoundError, ConflictError) as error:
            return error
        info = self.store.job(event)
        assert info.status in ("done", "failed")
        assert info.status == "failed" or info.tokens_done <= info.num_tokens
        assert (info.error is None) == (info.status == "done")
        return info

    def may_fail(self, tier: int, names: list[str]) -> bool:
        bounded = any(capacity is not None for capacity in self.capacities)
        return bounded or bool(self.full) or any(not self.sound(tier, name) for name in names) or self.troubled()

    def troubled(self) -> bool:
        return any(shelf.mode for shelf in self.shelves)

    @rule(number=st.integers(0, 2), tokens=st.none() | prompts, method=st.sampled_from(["zstd", "naive"]))
    def compress(self, number: int, tokens: list[int] | None, method: str) -> None:
        tier = self.place(number)
        names, shelf = self.in_tier(tier, tokens), self.shelves[tier]
        might_fail = self.may_fail(tier, names)
        before = {name: len(shelf.objects[name]) for name in names}
        info = self.job(lambda event: self.store.start_compress(event, method, LOCATIONS[tier], tokens), names)
        if isinstance(info, Exception):
            assert isinstance(info, NotFoundError)
            assert not names
            return
        assert info.num_tokens == self.tokens_of(names) > 0
        assert info.status == "done" or might_fail
        if info.status == "done":
            left = [name for name in names if name in self.announced[tier]]
            for name in left:
                assert shelf.objects[name] in self.damage or self.method_of(tier, name) == method
            if left == names:
                after = {name: len(shelf.objects[name]) for name in names}
                assert (info.bytes_before, info.bytes_after) == (sum(before.values()), sum(after.values()))
                assert info.tokens_done == info.num_tokens
            bytes_now = dict(shelf.objects)
            again = self.job(lambda event: self.store.start_compress(event, method, LOCATIONS[tier], tokens), names)
            assert shelf.objects == bytes_now, "the second time changes nothing"
            if left:
                assert again.status == "done"
                assert "already" in again.note

    @rule(number=st.integers(0, 2), tokens=st.none() | prompts)
    def decompress(self, number: int, tokens: list[int] | None) -> None:
        tier = self.place(number)
        names, shelf = self.in_tier(tier, tokens), self.shelves[tier]
        packed = [name for name in names if self.method_of(tier, name) == "zstd"]
        might_fail = self.may_fail(tier, names)
        info = self.job(lambda event: self.store.start_decompress(event, "zstd", LOCATIONS[tier], tokens), names)
        if isinstance(info, Exception):
            assert not packed
            assert isinstance(info, ConflictError if names else NotFoundError)
            return
        assert info.status == "done" or might_fail
        if info.status == "done":
            for name in packed:
                gone = name not in self.announced[tier] or shelf.objects[name] in self.damage
                assert gone or self.method_of(tier, name) == "naive"

    @precondition(lambda self: len(self.shelves) > 1)
    @rule(number=st.integers(0, 2), step=st.integers(1, 2), tokens=st.none() | prompts, copy=st.booleans())
    def move(self, number: int, step: int, tokens: list[int] | None, copy: bool) -> None:
        tier = self.place(number)
        target = self.place(tier + 1 + (step - 1) % (len(self.shelves) - 1))
        names = self.in_tier(tier, tokens)
        might_fail = self.may_fail(tier, names) or any(not self.sound(target, n) for n in self.announced[target])
        before = {name: self.shelves[tier].objects[name] for name in names}
        held = set(self.announced[target])
        start = lambda event: self.store.start_move(  # noqa: E731
            event, LOCATIONS[tier], "", LOCATIONS[target], tokens, copy=copy
        )
        info = self.job(start, names, protected=True)
        if isinstance(info, Exception):
            assert isinstance(info, NotFoundError)
            assert not names
            return
        assert info.num_tokens == self.tokens_of(names)
        assert info.status == "done" or might_fail
        if info.status == "done":
            arrived = [name for name in names if name in self.announced[target]]
            if not self.troubled() and info.tokens_done == info.num_tokens:
                assert arrived == names
            for name in arrived:
                if name not in held:
                    assert self.shelves[target].objects[name] == before[name]
                if not copy:
                    assert name not in self.announced[tier] or self.pinned(tier, name)

    def method_of(self, tier: int, name: str) -> str:
        """By the frame's magic number, which is nowhere in a raw chunk of these values."""
        return "zstd" if ZSTD_MAGIC in self.shelves[tier].objects[name] else "naive"

    # --- what goes wrong ----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.faulty and not self.troubled())
    @rule(number=st.integers(0, 2), mode=st.sampled_from(["down", "late", "crammed"]))
    def break_down(self, number: int, mode: str) -> None:
        self.shelves[self.place(number)].mode = mode
        self.doubt |= mode != "crammed"  # what is there, and in which order it goes, is not known from here any more

    @precondition(lambda self: self.troubled())
    @rule()
    def mend(self) -> None:
        for shelf in self.shelves:
            shelf.mode = ""

    @precondition(lambda self: self.faulty)
    @rule(number=st.integers(0, 2), which=st.integers(0, 9))
    def damage_one(self, number: int, which: int) -> None:
        tier = self.place(number)
        names = sorted(name for name in self.announced[tier] if self.sound(tier, name))
        if names:
            name = names[which % len(names)]
            blob = bytearray(self.shelves[tier].objects[name])
            blob[-1 - which % 8] ^= 1 << which % 8
            self.damage.add(bytes(blob))
            self.shelves[tier].objects[name] = bytes(blob)

    @precondition(lambda self: self.faulty)
    @rule(number=st.integers(0, 2))
    def fill_or_empty(self, number: int) -> None:
        self.full ^= {self.place(number)}
        self.store.set_full([LOCATIONS[tier] for tier in self.full])

    @rule(blind=st.sampled_from([None, None, 1, 2]))
    def restart(self, blind: int | None) -> None:
        """A new process: memory is empty, what is on shelves that last is found again, where it can be read."""
        self.mend()
        self.run(self.store.close())
        self.shelves[0].objects.clear()
        self.pins.clear()
        self.full.clear()
        self.doubt = False
        if self.faulty and blind is not None and blind < len(self.shelves):
            self.shelves[blind].mode, self.doubt = "blind", True
        self.open()
        for tier, shelf in enumerate(self.shelves):
            assert set(self.announced[tier]) == (set() if shelf.mode else set(shelf.objects))
        self.mend()

    # --- what must hold -----------------------------------------------------------------------------------------------

    @invariant()
    def accounts_are_true(self) -> None:
        if not hasattr(self, "store"):
            return
        if self.wrong:
            raise self.wrong[0]
        stats = self.store.stats()["tiers"]
        for tier, (shelf, capacity) in enumerate(zip(self.shelves, self.capacities, strict=True)):
            used, really = stats[LOCATIONS[tier]]["used_bytes"], sum(map(len, shelf.objects.values()))
            assert really <= used
            assert really == used or self.doubt
            assert capacity is None or max(used, shelf.peak) <= capacity
            assert {key.name() for key in self.store.contents(LOCATIONS[tier])} == self.announced[tier].keys()
            assert self.announced[tier].keys() <= shelf.objects.keys()
            assert self.announced[tier].keys() == shelf.objects.keys() or self.doubt
            for (where, name, _), until in self.pins.items():
                assert where != tier or until <= self.clock.now() or name in self.announced[tier]

    @invariant()
    def lookups_equal_the_dictionaries(self) -> None:
        if not hasattr(self, "store"):
            return
        tokens = prompt("abb", 2)
        for tier, found in enumerate(self.store.lookup(tokens).values()):
            end = 0
            for name, stop in chain(tokens):
                if name not in self.announced[tier]:
                    break
                end = stop
            assert found == end

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.mend()
            try:
                for tier, location in enumerate(LOCATIONS[: len(self.shelves)]):
                    self.store.unpin(location, None)
                    self.store.unpin(location, None, owner="a")
                    self.pins.clear()
                    self.run(self.store.clear(location))
                    assert self.shelves[tier].objects == {}, "something is left for ever"
                assert all(tier["used_bytes"] == 0 for tier in self.store.stats()["tiers"].values())
            finally:
                self.runner.run(self.store.close())
                self.runner.close()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
