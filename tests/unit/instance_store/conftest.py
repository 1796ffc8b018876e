"""A small store for tests: one tensor layout, backends that fail and damage on demand, and a record of changes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from lmcache_kit.clock import ManualClock
from lmcache_kit.contracts.records import EvictionPlugin, PlacementPlugin
from lmcache_kit.contracts.storage import Buffer, StorageBackend
from lmcache_kit.errors import UnavailableError
from lmcache_kit.instance.core.events import CacheChange, CacheEvent
from lmcache_kit.instance.core.tiers import Tier
from lmcache_kit.instance.store.codecs import CodecSet
from lmcache_kit.instance.store.store import KVStore
from lmcache_kit.kv import ChunkHasher, HashSpec, KVLayout, KVTensor
from lmcache_kit.plugins import registry

LAYOUT = KVLayout(2, 2, 4, "float16")
CHUNK = 8


class FaultyBackend(StorageBackend):
    """Memory that can be told to fail, to damage, to wait, and that knows the most bytes it ever held."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.fail: Callable[[str, str], bool] = lambda call, name: False
        self.calls: list[tuple[str, str]] = []
        self.peak = 0
        self.gate: threading.Event | None = None
        self.gated: set[str] = set()
        self.closed = False
        self._lock = threading.Lock()
        self._reached: dict[str, threading.Event] = {}

    async def called(self, call: str) -> None:
        """Until ``call`` was called for the first time since the gate was set."""
        with self._lock:
            reached = self._reached.setdefault(call, threading.Event())
        assert await asyncio.to_thread(reached.wait, 60)

    def shut(self, *calls: str) -> threading.Event:
        """Make ``calls`` wait until the event that is returned is set."""
        with self._lock:
            self._reached.clear()
        self.gated = set(calls)
        self.gate = threading.Event()
        return self.gate

    def _called(self, call: str, name: str = "") -> None:
        with self._lock:
            self.calls.append((call, name))
            self._reached.setdefault(call, threading.Event()).set()
        if self.gate is not None and call in self.gated:
            assert self.gate.wait(60)
        if self.fail(call, name):
            raise UnavailableError(f"{call} was told to fail")

    def put(self, name: str, blob: Buffer) -> None:
        self._called("put", name)
        with self._lock:
            self.objects[name] = bytes(blob)
            self.peak = max(self.peak, sum(map(len, self.objects.values())))

    def get(self, name: str) -> Buffer | None:
        self._called("get", name)
        return self.objects.get(name)

    def delete(self, name: str) -> bool:
        self._called("delete", name)
        return self.objects.pop(name, None) is not None

    def size(self, name: str) -> int | None:
        self._called("size", name)
        blob = self.objects.get(name)
        return None if blob is None else len(blob)

    def entries(self) -> Iterator[tuple[str, int]]:
        self._called("entries")
        return iter([(name, len(blob)) for name, blob in list(self.objects.items())])

    def close(self) -> None:
        self.closed = True

    def count(self, call: str) -> int:
        return sum(1 for done, _ in self.calls if done == call)


@dataclass
class Lab:
    """Makes stores, and keeps what they say."""

    clock: ManualClock = field(default_factory=ManualClock)
    changes: list[CacheChange] = field(default_factory=list)
    events: list[CacheEvent] = field(default_factory=list)
    stores: list[KVStore] = field(default_factory=list)

    chunk = CHUNK
    layout = LAYOUT
    backend = FaultyBackend

    def tier(self, location: str, capacity: int | None = None, policy: str = "lru", **more: Any) -> Tier:
        record = registry().get(EvictionPlugin, policy)
        more.setdefault("backend", FaultyBackend())
        more.setdefault("inline", location == "LocalCPUBackend")
        return Tier(
            location=location, capacity_bytes=capacity, policy=record.factory(record.options(), capacity), **more
        )

    def store(self, *tiers: Tier, placement: Any = "broadcast", model: str = "m", **more: Any) -> KVStore:
        if isinstance(placement, str):
            record = registry().get(PlacementPlugin, placement)
            placement = record.factory(record.options())
        more.setdefault("layout", LAYOUT)
        more.setdefault("hasher", ChunkHasher(HashSpec(CHUNK)))
        more.setdefault("codecs", CodecSet())
        store = KVStore(
            model=model,
            tiers=tiers,
            placement=placement,
            clock=self.clock,
            on_change=self.changes.append,
            on_event=self.events.append,
            **more,
        )
        self.stores.append(store)
        return store

    def kv(self, num_tokens: int, seed: int = 0, layout: KVLayout = LAYOUT) -> KVTensor:
        values = np.random.default_rng(seed).standard_normal(layout.shape(num_tokens))
        return KVTensor(layout, values.astype(layout.np_dtype))

    def smooth(self, num_tokens: int) -> KVTensor:
        """KV that compresses well."""
        values = np.broadcast_to(np.arange(num_tokens)[None, None, :, None, None] % 3, LAYOUT.shape(num_tokens))
        return KVTensor(LAYOUT, np.ascontiguousarray(values.astype(LAYOUT.np_dtype)))

    def blob_bytes(self, store: KVStore, num_tokens: int = CHUNK) -> int:
        """Stored size of one raw chunk, at most: key names differ by a byte or two."""
        return LAYOUT.nbytes(num_tokens) + 120

    def announced(self, location: str) -> set[str]:
        """Contents as a listener of the changes knows them; fails on a change that makes no sense."""
        names: set[str] = set()
        for change in self.changes:
            if change.location == location:
                name = change.key.name()
                assert (name in names) == (change.op == "evict"), change
                names.symmetric_difference_update({name})
        return names

    def check(self, store: KVStore) -> None:
        """What must hold for a store at rest."""
        for tier, config in zip(store._core.tiers, store._io.tiers, strict=True):
            listed = {key.name() for key in store.contents(tier.location)}
            assert listed == self.announced(tier.location)
            assert listed <= config.backend.objects.keys()
            own = {entry.name: entry.nbytes for entry in tier.entries.values() if not entry.foreign}
            assert own == {name: len(config.backend.objects[name]) for name in own}
            assert tier.held == sum(own.values())
            assert (tier.claimed, tier.leaving) == (0, 0)
            assert all(entry.readers == 0 and not entry.rewriting for entry in tier.entries.values())
            if tier.capacity is not None:
                assert config.backend.peak <= tier.capacity
            if not config.shared:
                assert config.backend.objects.keys() == own.keys()


@pytest_asyncio.fixture
async def lab():
    lab = Lab()
    yield lab
    for store in lab.stores:
        await store.close()


@pytest.fixture
def tokens() -> list[int]:
    """Two chunks and a half."""
    return list(range(100, 100 + 2 * CHUNK + 4))
