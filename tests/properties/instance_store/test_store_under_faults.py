"""The whole store, many operations at a time, over tiers that fail, damage and delay when Hypothesis says so.

The oracle is simple: three fixed streams of tokens, each with its KV. Whatever happened, a load gives a prefix of the
stream's KV, bit for bit.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmcache_kit.clock import ManualClock
from lmcache_kit.contracts.records import EvictionPlugin, PlacementPlugin
from lmcache_kit.contracts.storage import StorageBackend
from lmcache_kit.errors import ConflictError, NotFoundError, UnavailableError
from lmcache_kit.instance.core.events import CacheChange
from lmcache_kit.instance.core.tiers import EntryState, Tier
from lmcache_kit.instance.store.codecs import CodecSet
from lmcache_kit.instance.store.store import KVStore
from lmcache_kit.kv import ChunkHasher, ChunkKey, HashSpec, KVLayout, KVTensor, peek_header
from lmcache_kit.plugins import registry

LAYOUT = KVLayout(1, 2, 4, "bfloat16")
CHUNK, LENGTH = 4, 22
STREAMS = [[100 * stream + index for index in range(LENGTH)] for stream in range(3)]
KV = [
    KVTensor(LAYOUT, np.random.default_rng(seed).integers(-3, 3, LAYOUT.shape(LENGTH)).astype(LAYOUT.np_dtype))
    for seed in range(3)
]
BLOB = LAYOUT.nbytes(CHUNK) + 100
CODECS = CodecSet()
LOCATIONS = ["LocalCPUBackend", "LocalDiskBackend", "RemoteBackend"]


class Unreliable(StorageBackend):
    """Each call takes the next of ``faults``: ``fail`` before or ``late`` after the work, ``damage``, ``delay``."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = list(faults)
        self.objects: dict[str, bytes] = {}
        self.peak = 0
        self.lock = threading.Lock()

    def fault(self) -> str:
        with self.lock:
            fault = self.faults.pop() if self.faults else ""
        if fault == "delay":
            time.sleep(0.001)
        if fault == "fail":
            raise UnavailableError("told to fail")
        return fault

    def done(self, fault: str) -> None:
        if fault == "late":
            raise OSError("told to fail late")

    def put(self, name, blob):
        fault = self.fault()
        with self.lock:
            self.objects[name] = bytes(blob)
            self.peak = max(self.peak, sum(map(len, self.objects.values())))
        self.done(fault)

    def get(self, name):
        fault = self.fault()
        blob = self.objects.get(name)
        self.done(fault)
        if fault == "damage" and blob:
            damaged = bytearray(blob)
            damaged[len(blob) * 2 // 3] ^= 4
            return damaged
        return blob

    def delete(self, name):
        fault = self.fault()
        there = self.objects.pop(name, None) is not None
        self.done(fault)
        return there

    def size(self, name):
        self.fault()
        blob = self.objects.get(name)
        return None if blob is None else len(blob)

    def entries(self):
        return iter([(name, len(blob)) for name, blob in self.objects.items()])


class World:
    def __init__(self, placement: str, policy: str, capacities: list[int | None], faults: list[list[str]]) -> None:
        self.clock = ManualClock()
        self.announced: dict[str, set[str]] = {location: set() for location in LOCATIONS}
        self.backends = [Unreliable(these) for these in faults]
        eviction, placing = registry().get(EvictionPlugin, policy), registry().get(PlacementPlugin, placement)
        self.jobs = 0
        self.store = KVStore(
            model="m",
            layout=LAYOUT,
            hasher=ChunkHasher(HashSpec(CHUNK)),
            tiers=[
                Tier(
                    location=location,
                    backend=backend,
                    capacity_bytes=None if capacity is None else capacity * BLOB,
                    policy=eviction.factory(eviction.options(), None if capacity is None else capacity * BLOB),
                    inline=location == LOCATIONS[0],
                )
                for location, backend, capacity in zip(LOCATIONS, self.backends, capacities, strict=False)
            ],
            placement=placing.factory(placing.options()),
            codecs=CODECS,
            clock=self.clock,
            on_change=self.change,
            threads=2,
        )

    def change(self, change: CacheChange) -> None:
        name, names = change.key.name(), self.announced[change.location]
        assert (change.op == "evict") == (name in names)
        names.symmetric_difference_update({name})

    async def act(self, op: str, stream: int, number: int) -> None:
        store, tokens = self.store, STREAMS[stream][: 1 + number % LENGTH]
        location = store.locations()[number % len(store.locations())]
        other = store.locations()[(number + 1) % len(store.locations())]
        self.jobs += 1
        event = str(self.jobs)
        try:
            match op:
                case "save":
                    result = await store.save(tokens, KV[stream].tokens(0, len(tokens)))
                    assert result.num_tokens + result.held_tokens <= len(tokens)
                    assert result.errors or result.num_tokens + result.held_tokens == len(tokens)
                case "load":
                    await self.load(stream, len(tokens))
                case "clear":
                    await store.clear(location)
                case "pin":
                    store.pin(location, tokens, ttl=1)
                case "unpin":
                    store.unpin(location, None)
                case "zstd":
                    store.start_compress(event, "zstd", location, tokens)
                case "naive":
                    store.start_decompress(event, "zstd", location, tokens)
                case "move":
                    store.start_move(event, location, "", other, tokens, copy=bool(number % 2))
                case "time":
                    self.clock.advance(0.7)
        except (NotFoundError, ConflictError, UnavailableError):
            assert op not in ("save", "load", "unpin", "time")

    async def load(self, stream: int, length: int) -> int:
        loaded = await self.store.load_prefix(STREAMS[stream], limit=length)
        assert loaded.num_tokens == sum(hit.num_tokens for hit in loaded.hits) <= length
        if loaded.kv is not None:
            want = KV[stream].tokens(0, loaded.num_tokens)
            assert bytes(loaded.kv.tobytes_view()) == bytes(want.tobytes_view())
        return loaded.num_tokens

    def check(self) -> None:
        for tier, backend in zip(self.store._core.tiers, self.backends, strict=False):
            own = {entry.name: entry.nbytes for entry in tier.entries.values()}
            doubtful = {entry.name for entry in tier.entries.values() if entry.state is EntryState.DOUBTFUL}
            assert self.announced[tier.location] == own.keys() - doubtful
            assert {key.name() for key in self.store.contents(tier.location)} == own.keys() - doubtful
            assert sum(map(len, backend.objects.values())) <= tier.held
            assert tier.held == sum(own.values())
            assert (tier.claimed, tier.leaving) == (0, 0)
            assert all(entry.readers == 0 for entry in tier.entries.values())
            if tier.capacity is not None:
                assert backend.peak <= tier.capacity


OPS = ["save", "save", "load", "load", "clear", "pin", "unpin", "zstd", "naive", "move", "time"]
ACTIONS = st.lists(
    st.lists(st.tuples(st.sampled_from(OPS), st.integers(0, 2), st.integers(0, 50)), min_size=1, max_size=5),
    min_size=1,
    max_size=8,
)
WORLDS: dict[str, Any] = {
    "placement": st.sampled_from(["broadcast", "write_back", "demote"]),
    "policy": st.sampled_from(["lru", "fifo", "arc", "lfu"]),
    "capacities": st.lists(st.sampled_from([2, 4, 8, None]), min_size=1, max_size=3),
}
FAULTS = st.lists(st.sampled_from(["", "", "", "delay", "fail", "late", "damage"]), max_size=25)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


async def play(world: World, rounds: list[list[tuple[str, int, int]]]) -> None:
    """All actions of a round at a time, the rounds one after another."""
    for actions in rounds:
        await asyncio.gather(*[world.act(*action) for action in actions])
    for backend in world.backends:
        backend.faults.clear()
    await asyncio.wait_for(world.store.drain(), 60)


@QUICK
@given(rounds=ACTIONS, faults=st.lists(FAULTS, min_size=3, max_size=3), **WORLDS)
def test_loads_are_right_whatever_fails(rounds, faults, placement, policy, capacities) -> None:
    async def run() -> None:
        world = World(placement, policy, capacities, faults)
        try:
            await play(world, rounds)
            for stream in range(3):
                await world.load(stream, LENGTH)
            await world.store.drain()
            world.clock.advance(10)
            world.check()
            for location in world.store.locations():
                await world.store.clear(location)
            world.check()
            tokens, kv = STREAMS[0][: 2 * CHUNK], KV[0].tokens(0, 2 * CHUNK)
            result = await world.store.save(tokens, kv)
            assert result.num_tokens == 2 * CHUNK, result.errors
            assert await world.load(0, 2 * CHUNK) == 2 * CHUNK
        finally:
            await world.store.close()

    with asyncio.Runner() as runner:
        runner.run(run())


@QUICK
@given(rounds=ACTIONS, **WORLDS)
def test_without_faults_the_bytes_are_those_announced(rounds, placement, policy, capacities) -> None:
    async def run() -> None:
        world = World(placement, policy, capacities, [[], [], []])
        try:
            await play(world, rounds)
            world.check()
            for tier, backend in zip(world.store._core.tiers, world.backends, strict=False):
                assert backend.objects.keys() == world.announced[tier.location]
                for entry in tier.entries.values():
                    blob = backend.objects[entry.name]
                    assert (len(blob), peek_header(blob).codec) == (entry.nbytes, entry.codec)
            held = [world.store.lookup(stream) for stream in STREAMS]
            for stream in range(3):
                assert await world.load(stream, LENGTH) >= max(held[stream].values())
                await world.store.drain()
                held = [world.store.lookup(other) for other in STREAMS]
            stats = world.store.stats()
            assert stats["jobs"]["queued"] == stats["jobs"]["running"] == 0
            assert all(tier["damaged"] == tier["unavailable"] == 0 for tier in stats["tiers"].values())
        finally:
            await world.store.close()

    with asyncio.Runner() as runner:
        runner.run(run())


@settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from(["naive", "zstd", "fp8"]),
    layers=st.integers(1, 3),
    planes=st.sampled_from([1, 2]),
    heads=st.integers(1, 3),
    dim=st.integers(1, 9),
    dtype=st.sampled_from(["bfloat16", "float16", "float32"]),
    length=st.integers(1, 9),
    data=st.data(),
)
def test_codecs_give_back_what_they_promise(method, layers, planes, heads, dim, dtype, length, data) -> None:
    layout = KVLayout(layers, heads, dim, dtype, planes)
    raw = data.draw(st.binary(min_size=layout.nbytes(length), max_size=layout.nbytes(length)))
    kv = KVTensor.from_bytes(raw, layout, length)
    if not CODECS.lossless(method):
        finite = np.nan_to_num(kv.data.astype(np.float32), nan=0.5, posinf=3.0, neginf=-3.0).clip(-100, 100)
        kv = KVTensor(layout, finite.astype(layout.np_dtype))
    back = CODECS.decode(CODECS.encode(kv, ChunkKey("m", -1), method))
    assert (back.layout, back.num_tokens) == (kv.layout, kv.num_tokens)
    if CODECS.lossless(method):
        assert bytes(back.tobytes_view()) == bytes(kv.tobytes_view())
    else:
        assert np.isfinite(back.data.astype(np.float32)).all()
