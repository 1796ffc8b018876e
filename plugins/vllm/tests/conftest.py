"""The stand-in for vLLM, made and closed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lmcache_kit.kv.layout import KVLayout

sys.path.insert(0, str(Path(__file__).parent))  # engine.py, the stand-in, beside the tests

CHUNK = 8
LAYOUT = KVLayout(2, 2, 4, "float32")


@pytest.fixture
def settings(tmp_path: Path) -> dict:
    """An instance with a memory tier and no controller."""
    return {
        "chunk_size": CHUNK,
        "local_cpu": True,
        "max_local_cpu_size": 1,
        "lmcache_instance_id": "v",
        "extra_config": {"lmcache_kit": {"data_dir": str(tmp_path / "data")}},
    }


@pytest.fixture
def engine(settings: dict):
    """Makes engines; when they are closed, nothing may be left in the staging memory and no chunk pinned."""
    from engine import Engine

    made = []

    def make(layout: KVLayout = LAYOUT, **more) -> Engine:
        own = {**settings, **more.pop("settings", {})}
        made.append(Engine(own, layout, **more))
        return made[-1]

    yield make
    for each in made:
        each.settle()
        left = each.staging.free_bytes
        stats = each.cache.store.stats()
        each.close()
        assert left == each.staging.place[1], "staging memory is not given back"
        assert all(tier["pinned"] == 0 for tier in stats["tiers"].values())
