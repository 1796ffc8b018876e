"""Every built-in is registered, cheaply; its conformance is tested in tests/conformance."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from lmcache_kit.plugins import PluginRegistry

REGISTRY = PluginRegistry(allow=())

EXPECTED = {
    "storage": {"memory": "LocalCPUBackend", "disk": "LocalDiskBackend"},
    "compression": {"naive", "zstd", "fp8"},
    "eviction": {"lru", "lfu", "fifo", "mru", "arc"},
    "placement": {"broadcast", "write_back", "demote"},
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_names(kind):
    assert set(EXPECTED[kind]) <= set(REGISTRY.names(kind))


def test_locations_and_capabilities():
    records = {entry.record.name: entry.record for entry in REGISTRY.all("storage")}
    assert {name: records[name].location for name in EXPECTED["storage"]} == EXPECTED["storage"]
    assert records["memory"].capabilities == {"inline"}
    assert records["disk"].capabilities == {"persistent"}


def test_listing_imports_no_implementation():
    code = """if True:
        import json, sys
        from lmcache_kit.plugins import PluginRegistry
        PluginRegistry(allow=())
        print(json.dumps(sorted(sys.modules)))
    """
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    heavy = {"torch", "jax", "transformers", "zstandard", "zmq", "httpx", "starlette", "uvicorn"}
    assert heavy.isdisjoint(loaded)
    implementations = [name for name in loaded if name.rpartition(".")[2] in {"disk", "zstd", "fp8", "arc", "demote"}]
    assert implementations == []
