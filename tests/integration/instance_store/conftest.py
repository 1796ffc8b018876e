"""Stores over the built-in backends, as an instance makes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest_asyncio

from lmcache_kit.clock import WallClock
from lmcache_kit.contracts.records import EvictionPlugin, PlacementPlugin, StoragePlugin
from lmcache_kit.contracts.storage import StorageContext
from lmcache_kit.instance.core.events import CacheChange
from lmcache_kit.instance.core.tiers import Tier
from lmcache_kit.instance.store.codecs import CodecSet
from lmcache_kit.instance.store.store import KVStore
from lmcache_kit.kv import ChunkHasher, HashSpec, KVLayout, KVTensor
from lmcache_kit.plugins import registry

LAYOUT = KVLayout(2, 2, 16, "bfloat16")


@dataclass
class Lab:
    folder: Path
    changes: list[CacheChange] = field(default_factory=list)
    stores: list[KVStore] = field(default_factory=list)

    layout = LAYOUT
    chunk = 16

    def tier(self, kind: str, capacity: int | None = None, policy: str = "lru") -> Tier:
        plugins = registry()
        storage, eviction = plugins.get(StoragePlugin, kind), plugins.get(EvictionPlugin, policy)
        context = StorageContext(
            instance_id="a", location=storage.location, capacity_bytes=capacity, data_dir=self.folder
        )
        return Tier(
            location=storage.location,
            backend=storage.factory(plugins.options(storage), context),
            capacity_bytes=capacity,
            policy=eviction.factory(plugins.options(eviction), capacity),
            inline="inline" in storage.capabilities,
            persistent="persistent" in storage.capabilities,
            shared="shared" in storage.capabilities,
        )

    def store(self, *tiers: Tier, placement: str = "broadcast", model: str = "m", layout: KVLayout = LAYOUT) -> KVStore:
        record = registry().get(PlacementPlugin, placement)
        store = KVStore(
            model=model,
            layout=layout,
            hasher=ChunkHasher(HashSpec(self.chunk)),
            tiers=tiers,
            placement=record.factory(registry().options(record)),
            codecs=CodecSet(),
            clock=WallClock(),
            on_change=self.changes.append,
        )
        self.stores.append(store)
        return store

    def kv(self, num_tokens: int, seed: int = 0) -> KVTensor:
        values = np.random.default_rng(seed).integers(-4, 4, LAYOUT.shape(num_tokens))
        return KVTensor(LAYOUT, values.astype(LAYOUT.np_dtype))

    def files(self) -> list[Path]:
        return sorted(self.folder.rglob("*.blob"))


@pytest_asyncio.fixture
async def lab(tmp_path):
    lab = Lab(tmp_path)
    yield lab
    for store in lab.stores:
        await store.close()
