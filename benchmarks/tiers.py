"""Throughput of the storage backends by blob size, and of a store's save and load_prefix by tier and codec.

A backend's figures are one call at a time. A store's figures count the raw KV bytes of the prompt, so codecs can be
compared; what is loaded is checked once, bit for bit for lossless codecs. Disk figures include the page cache; the
memory backend stores references, so its rate is that of a dict, whatever the size.

Usage: python benchmarks/tiers.py [--output FILE] [--seconds S] [--backend NAME]... [--size BYTES]... [--method NAME]...
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lmcache_kit.clock import WallClock
from lmcache_kit.contracts.records import EvictionPlugin, PlacementPlugin, StoragePlugin
from lmcache_kit.contracts.storage import StorageBackend, StorageContext
from lmcache_kit.instance.core.tiers import Tier
from lmcache_kit.instance.store.codecs import CodecSet
from lmcache_kit.instance.store.store import KVStore
from lmcache_kit.kv import ChunkHasher, HashSpec, KVLayout, KVTensor
from lmcache_kit.plugins import registry
from lmcache_kit.units import format_size

SIZES = [64 * 2**10, 2**20, 16 * 2**20]
LAYOUT = KVLayout(16, 8, 64, "bfloat16")
CHUNK, TOKENS = 256, 2048
OBJECTS = 4


def make(name: str, folder: Path) -> tuple[StoragePlugin, StorageBackend]:
    record = registry().get(StoragePlugin, name)
    context = StorageContext(instance_id="bench", location=record.location, capacity_bytes=None, data_dir=folder)
    return record, record.factory(registry().options(record), context)


def repeat(work: Callable[[int], object], seconds: float) -> tuple[int, float]:
    """How often ``work`` ran, at least 5 times and for about ``seconds``, and for how long."""
    count, begin = 0, time.perf_counter()
    while count < 5 or time.perf_counter() - begin < seconds:
        work(count)
        count += 1
    return count, time.perf_counter() - begin


def backend_rows(name: str, sizes: list[int], seconds: float) -> list[dict[str, Any]]:
    """One row per size."""
    return [backend_row(name, size, seconds) for size in sizes]


def backend_row(name: str, size: int, seconds: float) -> dict[str, Any]:
    """Put and get of distinct objects, which are few so that memory stays small."""
    with tempfile.TemporaryDirectory() as folder:
        _, backend = make(name, Path(folder))
        blobs = [os.urandom(size) for _ in range(OBJECTS)]
        row: dict[str, Any] = {"kind": "backend", "backend": name, "blob_bytes": size}
        try:
            for blob_number, blob in enumerate(blobs):
                backend.put(f"m.{blob_number:x}", blob)
            calls = {
                "put": lambda number: backend.put(f"m.{number % OBJECTS:x}", blobs[number % OBJECTS]),
                "get": lambda number: backend.get(f"m.{number % OBJECTS:x}"),
            }
            for call, work in calls.items():
                count, elapsed = repeat(work, seconds)
                row[f"{call}_seconds"] = elapsed / count
                row[f"{call}_bytes_per_second"] = size * count / elapsed
            assert bytes(backend.get("m.0") or b"") == blobs[0]
        finally:
            for blob_number in range(OBJECTS):
                backend.delete(f"m.{blob_number:x}")
            backend.close()
        return row


def sample_kv() -> KVTensor:
    """KV with the spread of a real cache: normal values, each channel at its own scale."""
    rng = np.random.default_rng(0)
    scale = rng.lognormal(0, 1, (LAYOUT.num_layers, LAYOUT.planes, 1, LAYOUT.num_kv_heads, LAYOUT.head_dim))
    values = rng.standard_normal(LAYOUT.shape(TOKENS), dtype=np.float32) * scale.astype(np.float32)
    return KVTensor(LAYOUT, values.astype(LAYOUT.np_dtype))


async def store_row(name: str, method: str, kv: KVTensor, seconds: float) -> dict[str, Any]:
    """Save and load of one prompt after another, each of ``TOKENS`` tokens."""
    with tempfile.TemporaryDirectory() as folder:
        record, backend = make(name, Path(folder))
        eviction, placement = registry().get(EvictionPlugin, "lru"), registry().get(PlacementPlugin, "broadcast")
        store = KVStore(
            model="bench",
            layout=LAYOUT,
            hasher=ChunkHasher(HashSpec(CHUNK)),
            tiers=[
                Tier(
                    location=record.location,
                    backend=backend,
                    capacity_bytes=None,
                    policy=eviction.factory(eviction.options(), None),
                    inline="inline" in record.capabilities,
                )
            ],
            placement=placement.factory(placement.options()),
            codecs=CodecSet(),
            clock=WallClock(),
            on_change=lambda change: None,
            store_codec=method,
        )
        try:
            tokens = list(range(TOKENS))
            saves = loads = 0
            save_seconds = load_seconds = 0.0
            stored = 0
            while saves < 3 or save_seconds + load_seconds < 2 * seconds:
                begin = time.perf_counter()
                result = await store.save(tokens, kv)
                save_seconds += time.perf_counter() - begin
                assert result.num_tokens == TOKENS, result.errors
                stored = result.nbytes
                saves += 1
                begin = time.perf_counter()
                loaded = await store.load_prefix(tokens)
                load_seconds += time.perf_counter() - begin
                assert loaded.kv is not None
                assert loaded.num_tokens == TOKENS
                if loads == 0 and store.codecs.lossless(method):
                    assert np.array_equal(loaded.kv.data.view(np.uint16), kv.data.view(np.uint16))
                loads += 1
                await store.clear(record.location)
            return {
                "kind": "store",
                "backend": name,
                "method": method,
                "tokens": TOKENS,
                "chunk_tokens": CHUNK,
                "raw_bytes": kv.nbytes,
                "stored_bytes": stored,
                "rounds": saves,
                "save_seconds": save_seconds / saves,
                "load_seconds": load_seconds / loads,
                "save_bytes_per_second": kv.nbytes * saves / save_seconds,
                "load_bytes_per_second": kv.nbytes * loads / load_seconds,
            }
        finally:
            await store.close()


def table(rows: list[dict[str, Any]]) -> str:
    """The results for reading."""
    lines = [f"{'backend':<8} {'blob':>8} {'put':>12} {'get':>12}"]
    lines += [
        f"{row['backend']:<8} {format_size(row['blob_bytes']):>8} {format_size(row['put_bytes_per_second']):>10}/s "
        f"{format_size(row['get_bytes_per_second']):>10}/s"
        for row in rows
        if row["kind"] == "backend"
    ]
    lines += ["", f"{'store':<8} {'method':>8} {'stored':>9} {'save':>12} {'load':>12}"]
    lines += [
        f"{row['backend']:<8} {row['method']:>8} {row['stored_bytes'] / row['raw_bytes']:>8.0%} "
        f"{format_size(row['save_bytes_per_second']):>11}/s {format_size(row['load_bytes_per_second']):>10}/s"
        for row in rows
        if row["kind"] == "store"
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="write the results as JSON to this file")
    parser.add_argument("--seconds", type=float, default=0.5, help="time for each figure")
    parser.add_argument("--backend", action="append", help="only these; default memory and disk")
    parser.add_argument("--size", action="append", type=int, help="only these blob sizes, in bytes")
    parser.add_argument("--method", action="append", help="only these codecs; default naive, zstd and fp8")
    arguments = parser.parse_args()
    backends = arguments.backend or ["memory", "disk"]
    rows: list[dict[str, Any]] = []
    for name in backends:
        rows += backend_rows(name, arguments.size or SIZES, arguments.seconds)
    kv = sample_kv()
    for name in backends:
        for method in arguments.method or ["naive", "zstd", "fp8"]:
            rows.append(asyncio.run(store_row(name, method, kv, arguments.seconds)))
    print(table(rows))
    if arguments.output is not None:
        host = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        arguments.output.write_text(json.dumps({"benchmark": "tiers", "host": host, "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
