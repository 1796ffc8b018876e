"""A tier that several simulated stores share: what one puts the others find, and what one deletes is gone for all."""

from __future__ import annotations

from typing import Any

import pytest

from lmcache_kit.contracts.records import EvictionPlugin, PlacementPlugin
from lmcache_kit.instance.core.tiers import TierState
from lmcache_kit.kv import ChunkHasher, HashSpec, KVLayout
from lmcache_kit.plugins import registry
from lmcache_kit.sim.control import ControlledSimStore
from lmcache_kit.sim.costs import Costs, TierCosts
from lmcache_kit.sim.devices import TierDevice
from lmcache_kit.sim.loop import VirtualClock, VirtualLoop
from lmcache_kit.sim.store import SimStore, SimTier

LAYOUT = KVLayout(1, 2, 8, "bfloat16")
CHUNK = 4
BLOB = LAYOUT.nbytes(CHUNK) + 40


class Sharing:
    """Two stores with one shared tier each, of one service."""

    def __init__(self, chunks: int | None = None) -> None:
        self.loop = VirtualLoop()
        self.service: dict[str, int] = {}
        self.events: dict[str, list[tuple[str, str]]] = {"a": [], "b": []}
        self.stores = {name: self._store(name, chunks) for name in "ab"}
        self.controls = {
            name: ControlledSimStore(self.loop, store, None, lambda method: None)  # type: ignore[arg-type]
            for name, store in self.stores.items()
        }

    def _store(self, name: str, chunks: int | None) -> SimStore:
        capacity = None if chunks is None else chunks * BLOB
        eviction, placement = registry().get(EvictionPlugin, "lru"), registry().get(PlacementPlugin, "broadcast")
        tier = SimTier(
            location="Shared",
            state=TierState(
                0, "Shared", capacity, eviction.factory(eviction.options(), capacity), VirtualClock(self.loop)
            ),
            device=TierDevice(TierCosts()),
            persistent=True,
            readable=True,
            method=None,
            shared=self.service,
        )
        return SimStore(
            self.loop,
            model="m",
            layout=LAYOUT,
            hasher=ChunkHasher(HashSpec(CHUNK)),
            tiers=[tier],
            placement=placement.factory(placement.options()),
            costs=Costs(),
            on_change=lambda change: None,
            on_event=lambda event: self.events[name].append((event.op, event.cause)),
            store_method="naive",
            min_retrieve_tokens=0,
        )

    async def _once(self, begin: Any) -> Any:
        done = self.loop.create_future()
        begin(done.set_result)
        return await done

    def load(self, name: str, tokens: list[int]) -> int:
        store = self.stores[name]
        chunks = store.chunks(tokens)
        found = self.loop.run(self._once(lambda done: store.load(chunks, len(tokens), done)))
        return int(found.num_tokens)

    def save(self, name: str, tokens: list[int]) -> int:
        store = self.stores[name]
        saved = self.loop.run(self._once(lambda done: store.save(store.chunks(tokens), 0, done)))
        return int(saved.num_tokens)

    def clear(self, name: str) -> int:
        return self.loop.run(self.controls[name].clear("Shared"))


ONE, TWO = list(range(12)), list(range(50, 58))


def test_what_one_puts_the_other_finds() -> None:
    both = Sharing()
    assert both.save("a", ONE) == 12
    assert both.load("b", ONE) == 12
    assert [event for event in both.events["b"] if event[0] == "admit"] == [("admit", "adopt")] * 3
    assert both.save("b", ONE) == 0
    state = both.stores["b"].tiers[0].state
    assert state.held == 0, "its bytes are the other's"


def test_what_one_deletes_the_other_does_not_serve() -> None:
    both = Sharing()
    both.save("a", ONE)
    assert both.load("b", ONE) == 12
    assert both.clear("a") == 12
    assert both.service == {}
    both.events["b"].clear()
    assert both.load("b", ONE) == 0
    assert both.events["b"] == [("evict", "missing"), ("miss", "")]
    assert both.save("b", ONE) == 4, "the first was found to be gone; the others count as held until asked for"
    assert both.load("a", ONE) == 4


def test_what_is_evicted_in_the_middle_ends_the_prefix() -> None:
    both = Sharing(chunks=5)
    both.save("a", ONE)
    assert both.load("b", ONE) == 12
    both.save("a", [*range(90, 102)])  # makes the first chunk of the other prompt go, which was saved first
    assert 0 < len(both.service) <= 5
    both.events["b"].clear()
    served = both.load("b", ONE)
    hits = [event for event in both.events["b"] if event[0] == "hit"]
    assert len(hits) * CHUNK == served < 12


def test_what_one_clears_of_another_stays_there() -> None:
    both = Sharing()
    both.save("a", TWO)
    assert both.load("b", TWO) == 8
    assert both.clear("b") == 0
    assert len(both.service) == 2
    assert both.load("a", TWO) == 8
    assert both.load("b", TWO) == 8


@pytest.mark.parametrize("first", ["a", "b"])
def test_the_same_put_twice_is_one(first: str) -> None:
    both = Sharing()
    other = "b" if first == "a" else "a"
    assert both.save(first, TWO) == 8
    assert both.save(other, TWO) == 0
    assert len(both.service) == 2
    assert both.stores[other].tiers[0].state.held == 0
