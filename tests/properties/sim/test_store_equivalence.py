"""The simulated store against the real one: the same operations lead to the same decisions.

Both are driven with the same operations, one at a time, on the same cache: memory tiers of a few chunks, any eviction
and placement policy. The real one keeps real KV, its copies in the background are waited for between operations; what
is compared is every event of the cache core, in order, and what each operation answered.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lmcache_kit.clock import ManualClock
from lmcache_kit.contracts.records import EvictionPlugin, PlacementPlugin
from lmcache_kit.contracts.storage import StorageBackend
from lmcache_kit.errors import LMCacheKitError, UnavailableError
from lmcache_kit.instance.core.events import CacheEvent
from lmcache_kit.instance.core.tiers import Tier, TierState
from lmcache_kit.instance.store.codecs import CodecSet
from lmcache_kit.instance.store.store import KVStore
from lmcache_kit.kv import ChunkHasher, ChunkKey, HashSpec, KVLayout, KVTensor, unpack_blob
from lmcache_kit.plugins import registry
from lmcache_kit.sim.control import ControlledSimStore
from lmcache_kit.sim.costs import CodecCosts, Costs, TierCosts
from lmcache_kit.sim.devices import TierDevice
from lmcache_kit.sim.loop import VirtualClock, VirtualLoop
from lmcache_kit.sim.store import SimStore, SimTier

LAYOUT = KVLayout(1, 2, 8, "bfloat16")
CHUNK = 4
LOCATIONS = ["Fast", "Middle", "Slow"]
CODECS = CodecSet()
BLOB = LAYOUT.nbytes(CHUNK) + 100
"""Roughly one chunk with its header."""


def kv_of(num_tokens: int) -> KVTensor:
    values = np.random.default_rng(num_tokens).standard_normal(LAYOUT.shape(num_tokens))
    return KVTensor(LAYOUT, values.astype(LAYOUT.np_dtype))


@functools.cache
def payload(num_tokens: int, method: str) -> int:
    """Bytes of a payload, as the real codec makes them; of these methods they do not depend on the values."""
    return unpack_blob(CODECS.encode(kv_of(num_tokens), ChunkKey("m", 1), method)).header.payload_bytes


def prompt(symbols: str, tail: int) -> list[int]:
    """One chunk per symbol, then ``tail`` tokens; prompts that begin with the same symbols share those chunks."""
    tokens = [10 * ord(symbol) + place for symbol in symbols for place in range(CHUNK)]
    return tokens + [7] * tail


class Memory(StorageBackend):
    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def put(self, name, blob):
        self.objects[name] = bytes(blob)

    def get(self, name):
        return self.objects.get(name)

    def delete(self, name):
        return self.objects.pop(name, None) is not None

    def size(self, name):
        blob = self.objects.get(name)
        return None if blob is None else len(blob)

    def entries(self):
        return iter([(name, len(blob)) for name, blob in self.objects.items()])

    def close(self):
        pass


class NoPeers:
    def store(self, url: str) -> ControlledSimStore:
        raise UnavailableError(url)

    async def carry(self, url: str, nbytes: int) -> None:
        raise UnavailableError(url)

    def is_self(self, url: str) -> bool:
        return False


Spec = dict[str, Any]
Action = tuple[Any, ...]


def policy_of(name: str, capacity: int | None) -> Any:
    record = registry().get(EvictionPlugin, name)
    return record.factory(record.options(), capacity)


def placement_of(name: str) -> Any:
    record = registry().get(PlacementPlugin, name)
    return record.factory(record.options())


def told(event: CacheEvent) -> tuple[str, str, str, int, str]:
    return event.op, event.location, event.key.name(), event.nbytes, event.cause


class Real:
    """The real store, with a loop of its own."""

    def __init__(self, spec: Spec) -> None:
        self.events: list[Any] = []
        self.jobs = 0
        self.store = KVStore(
            model="m",
            layout=LAYOUT,
            hasher=ChunkHasher(HashSpec(CHUNK, save_unfull_chunk=spec["partial"])),
            tiers=[
                Tier(
                    location=tier["location"],
                    backend=Memory(),
                    capacity_bytes=tier["capacity"],
                    policy=policy_of(tier["policy"], tier["capacity"]),
                    inline=True,
                    readable=tier["readable"],
                    method=tier["method"],
                )
                for tier in spec["tiers"]
            ],
            placement=placement_of(spec["placement"]),
            codecs=CODECS,
            clock=ManualClock(),
            on_change=lambda change: self.events.append((change.op, change.location, change.key.name())),
            on_event=lambda event: self.events.append(told(event)),
            min_retrieve_tokens=spec["least"],
            store_codec=spec["method"],
            threads=1,
        )
        self.core = self.store._core
        self.runner = asyncio.Runner()

    def act(self, op: str, *details: Any) -> Any:
        return self.runner.run(self._act(op, *details))

    async def _act(self, op: str, *details: Any) -> Any:
        self.jobs += 1
        try:
            return await getattr(self, op)(*details)
        except LMCacheKitError as error:
            return type(error).__name__
        finally:
            await self.store.drain()

    async def load(self, tokens: Sequence[int], limit: int) -> Any:
        found = await self.store.load_prefix(tokens, limit=limit)
        by_location: dict[str, int] = {}
        for hit in found.hits:
            by_location[hit.location] = by_location.get(hit.location, 0) + hit.num_tokens
        return found.num_tokens, by_location, sum(hit.stored_bytes for hit in found.hits)

    async def save(self, tokens: Sequence[int], start: int) -> Any:
        saved = await self.store.save(tokens, kv_of(len(tokens) - start), start=start)
        return saved.num_tokens, saved.by_location, saved.nbytes

    async def pin(self, location: str, tokens: Sequence[int], owner: str) -> Any:
        return self.store.pin(location, tokens, owner=owner)

    async def unpin(self, location: str, tokens: Sequence[int] | None, owner: str) -> Any:
        return self.store.unpin(location, tokens, owner=owner)

    async def clear(self, location: str) -> Any:
        return await self.store.clear(location)

    async def full(self, locations: Sequence[str]) -> Any:
        self.store.set_full(locations)

    async def compress(self, location: str, method: str, tokens: Sequence[int] | None) -> Any:
        return await self._job(self.store.start_compress(str(self.jobs), method, location, tokens))

    async def decompress(self, location: str, method: str, tokens: Sequence[int] | None) -> Any:
        return await self._job(self.store.start_decompress(str(self.jobs), method, location, tokens))

    async def move(self, location: str, target: str, tokens: Sequence[int] | None, copy: bool) -> Any:
        return await self._job(self.store.start_move(str(self.jobs), location, "", target, tokens, copy=copy))

    async def _job(self, begun: Any) -> Any:
        await self.store.drain()
        done = self.store.job(str(self.jobs))
        return begun.num_tokens, done.status, done.tokens_done, done.bytes_before, done.bytes_after

    def close(self) -> None:
        self.runner.run(self.store.close())
        self.runner.close()


class Simulated:
    """The simulated store on virtual time."""

    def __init__(self, spec: Spec) -> None:
        self.events: list[Any] = []
        self.jobs = 0
        self.loop = VirtualLoop()
        clock = VirtualClock(self.loop)
        self.store = SimStore(
            self.loop,
            model="m",
            layout=LAYOUT,
            hasher=ChunkHasher(HashSpec(CHUNK, save_unfull_chunk=spec["partial"])),
            tiers=[
                SimTier(
                    location=tier["location"],
                    state=TierState(
                        index, tier["location"], tier["capacity"], policy_of(tier["policy"], tier["capacity"]), clock
                    ),
                    device=TierDevice(TierCosts(read_seconds=0.001, write_seconds=0.002)),
                    persistent=False,
                    readable=tier["readable"],
                    method=tier["method"],
                    shared=None,
                )
                for index, tier in enumerate(spec["tiers"])
            ],
            placement=placement_of(spec["placement"]),
            costs=Costs(codecs={"naive": CodecCosts(), "fp8": CodecCosts()}),
            on_change=lambda change: self.events.append((change.op, change.location, change.key.name())),
            on_event=lambda event: self.events.append(told(event)),
            store_method=spec["method"],
            min_retrieve_tokens=spec["least"],
        )
        # Ratios are one number a method; here sizes are to be those of the real codecs to the byte.
        for method in ("naive", "fp8"):
            for tokens in range(1, CHUNK + 1):
                self.store._payloads[tokens, method] = payload(tokens, method)
        self.core = self.store.core
        self.controlled = ControlledSimStore(self.loop, self.store, NoPeers(), CODECS.record)

    def act(self, op: str, *details: Any) -> Any:
        return self.loop.run(self._act(op, *details))

    async def _act(self, op: str, *details: Any) -> Any:
        self.jobs += 1
        try:
            return await getattr(self, op)(*details)
        except LMCacheKitError as error:
            return type(error).__name__

    async def load(self, tokens: Sequence[int], limit: int) -> Any:
        done = self.loop.create_future()
        self.store.load(self.store.chunks(tokens), limit, done.set_result)
        found = await done
        return found.num_tokens, found.by_location, found.nbytes

    async def save(self, tokens: Sequence[int], start: int) -> Any:
        done = self.loop.create_future()
        self.store.save(self.store.chunks(tokens), start, done.set_result)
        saved = await done
        return saved.num_tokens, saved.by_location, saved.nbytes

    async def pin(self, location: str, tokens: Sequence[int], owner: str) -> Any:
        return self.controlled.pin(location, tokens, owner=owner)

    async def unpin(self, location: str, tokens: Sequence[int] | None, owner: str) -> Any:
        return self.controlled.unpin(location, tokens, owner=owner)

    async def clear(self, location: str) -> Any:
        return await self.controlled.clear(location)

    async def full(self, locations: Sequence[str]) -> Any:
        for tier in self.store.tiers:
            tier.state.full = tier.location in locations

    async def compress(self, location: str, method: str, tokens: Sequence[int] | None) -> Any:
        return await self._job(self.controlled.start_compress(str(self.jobs), method, location, tokens))

    async def decompress(self, location: str, method: str, tokens: Sequence[int] | None) -> Any:
        return await self._job(self.controlled.start_decompress(str(self.jobs), method, location, tokens))

    async def move(self, location: str, target: str, tokens: Sequence[int] | None, copy: bool) -> Any:
        return await self._job(self.controlled.start_move(str(self.jobs), location, "", target, tokens, copy=copy))

    async def _job(self, begun: Any) -> Any:
        await self.controlled._jobs.idle()
        done = self.controlled.job(str(self.jobs))
        return begun.num_tokens, done.status, done.tokens_done, done.bytes_before, done.bytes_after

    def close(self) -> None:
        pass


def state(store: Any) -> Any:
    """What each tier holds, in the order that its policy would evict."""
    return [
        (
            tier.location,
            tier.held,
            tier.claimed,
            tier.leaving,
            sorted((entry.name, entry.nbytes, entry.num_tokens, entry.codec) for entry in tier.entries.values()),
            list(tier.policy.victims()),
            sorted(tier.pins.names()),
        )
        for tier in store.core.tiers
    ]


def compare(spec: Spec, actions: Sequence[Action]) -> None:
    real, simulated = Real(spec), Simulated(spec)
    try:
        for action in actions:
            answers = real.act(*action), simulated.act(*action)
            assert simulated.events == real.events, action
            assert answers[1] == answers[0], action
            assert state(simulated) == state(real), action
            real.events.clear()
            simulated.events.clear()
    finally:
        real.close()
        simulated.close()


# --- what may happen -------------------------------------------------------------------------------------------------

PROMPTS = st.builds(prompt, st.text("ab", min_size=0, max_size=6), st.integers(0, CHUNK - 1)).filter(len)
METHODS = st.sampled_from(["naive", "fp8"])


@st.composite
def specs(draw: Any) -> Spec:
    tiers = []
    for location in LOCATIONS[: draw(st.integers(1, 3))]:
        chunks = draw(st.sampled_from([1, 2, 3, 4, 6, 9, None]))
        tiers.append(
            {
                "location": location,
                "capacity": None if chunks is None else int(chunks * BLOB),
                "policy": draw(st.sampled_from(["lru", "lfu", "fifo", "mru", "arc"])),
                "readable": draw(st.integers(0, 7)) > 0,
                "method": draw(st.sampled_from([None, None, None, "fp8", "naive"])),
            }
        )
    return {
        "tiers": tiers,
        "placement": draw(st.sampled_from(["broadcast", "demote", "write_back"])),
        "partial": draw(st.booleans()),
        "least": draw(st.sampled_from([0, 0, 0, CHUNK + 1])),
        "method": draw(METHODS),
    }


@st.composite
def plays(draw: Any) -> tuple[Spec, list[Action]]:
    spec = draw(specs())
    places = st.sampled_from([tier["location"] for tier in spec["tiers"]])
    maybe = st.one_of(PROMPTS, st.none())
    owners = st.sampled_from(["", "x"])
    kinds = {
        "load": st.tuples(st.just("load"), PROMPTS, st.integers(0, 6 * CHUNK + 3)),
        "request": PROMPTS,
        "save": st.builds(
            lambda tokens, start: ("save", tokens, min(start, len(tokens) // CHUNK) * CHUNK),
            PROMPTS,
            st.sampled_from([0, 0, 0, 1, 2]),
        ),
        "pin": st.tuples(st.just("pin"), places, PROMPTS, owners),
        "unpin": st.tuples(st.just("unpin"), places, maybe, owners),
        "clear": st.tuples(st.just("clear"), places),
        "full": st.tuples(st.just("full"), st.lists(places, max_size=2, unique=True)),
        "compress": st.tuples(st.just("compress"), places, METHODS, maybe),
        "decompress": st.tuples(st.just("decompress"), places, METHODS, maybe),
        "move": st.tuples(st.just("move"), places, places, maybe, st.booleans()),
    }
    usual = ["request"] * 6 + [
        "load",
        "save",
        "pin",
        "unpin",
        "clear",
        "full",
        "compress",
        "decompress",
        "move",
        "move",
    ]
    actions: list[Action] = []
    for kind in draw(st.lists(st.sampled_from(usual), min_size=1, max_size=20)):
        drawn = draw(kinds[kind])
        if kind == "request":
            # What a completion does: load all but the last token, then save the rest.
            actions += [("load", drawn, len(drawn) - 1), ("save", drawn, 0)]
        else:
            actions.append(drawn)
    return spec, actions


def tier(location: str, chunks: float | None, policy: str = "lru", **more: Any) -> Spec:
    capacity = None if chunks is None else int(chunks * BLOB)
    return {"location": location, "capacity": capacity, "policy": policy, "readable": True, "method": None, **more}


def spec(*tiers: Spec, placement: str, **more: Any) -> Spec:
    return {"tiers": list(tiers), "placement": placement, "partial": False, "least": 0, "method": "naive", **more}


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(plays())
@example(
    (
        spec(tier("Fast", 2), tier("Middle", 2), tier("Slow", 3), placement="demote"),
        [("save", prompt(text, 0), 0) for text in ("aa", "ba", "bb", "abab")]
        + [("load", prompt(text, 0), 99) for text in ("aa", "ba", "bb", "abab")],
    )
)
def test_the_same_operations_lead_to_the_same_decisions(play: tuple[Spec, list[Action]]) -> None:
    compare(*play)


@pytest.mark.parametrize("placement", ["broadcast", "demote", "write_back"])
@pytest.mark.parametrize("policy", ["lru", "lfu", "fifo", "mru", "arc"])
def test_a_long_life_under_pressure(policy: str, placement: str) -> None:
    rng = np.random.default_rng(3)
    actions: list[Action] = []
    for number in range(60):
        tokens = prompt("".join(rng.choice(list("ab"), size=rng.integers(1, 6))), int(rng.integers(0, CHUNK)))
        actions += [("load", tokens, len(tokens) - 1), ("save", tokens, 0)]
        if number % 9 == 5:
            actions.append(("pin", "Fast", tokens, ""))
        if number % 9 == 8:
            actions.append(("unpin", "Fast", None, ""))
        if number % 7 == 3:
            actions.append(("compress", "Middle", "fp8", None))
        if number % 11 == 6:
            actions.append(("move", "Middle", "Fast", tokens, False))
        if number % 20 == 19:
            actions.append(("clear", "Fast"))
    tiers = tier("Fast", 4.5, policy), tier("Middle", 7, policy), tier("Slow", 12, policy, method="fp8")
    compare(spec(*tiers, placement=placement, partial=True), actions)


@pytest.mark.parametrize("num_tokens", range(1, CHUNK + 1))
def test_sizes_of_these_methods_do_not_depend_on_values(num_tokens: int) -> None:
    for method in ("naive", "fp8"):
        sizes = set()
        for seed in range(5):
            values = np.random.default_rng(seed).standard_normal(LAYOUT.shape(num_tokens)) * 10.0**seed
            kv = KVTensor(LAYOUT, values.astype(LAYOUT.np_dtype))
            sizes.add(unpack_blob(CODECS.encode(kv, ChunkKey("m", 1), method)).header.payload_bytes)
        assert sizes == {payload(num_tokens, method)}
