"""Speed of the storage backends by blob size, and of a store's save and load_prefix by tier and codec.

A backend's figures are one call at a time, and every byte that a get returns is read once. Disk figures include the
page cache, and no write waits for the device. The memory backend passes references: it has call times and no byte
rate. A store's figures count the raw KV bytes of the prompt, so that codecs can be compared; what is loaded is
compared with what was saved, bit for bit where the codec is lossless. `naive` is raw KV.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from harness import LEAST_CALLS, Report, argument_parser, measure, table

from lmcache_kit.clock import WallClock
from lmcache_kit.contracts.records import EvictionPlugin, PlacementPlugin, StoragePlugin
from lmcache_kit.contracts.storage import StorageBackend, StorageContext
from lmcache_kit.instance.core.tiers import Tier
from lmcache_kit.instance.store.codecs import CodecSet
from lmcache_kit.instance.store.store import KVStore
from lmcache_kit.kv import ChunkHasher, HashSpec, KVLayout, KVTensor
from lmcache_kit.plugins import registry
from lmcache_kit.units import format_size

BACKENDS = ("memory", "disk")
METHODS = ("naive", "zstd", "fp8")
BY_REFERENCE = frozenset({"memory"})
SIZES = (64 * 2**10, 2**20, 16 * 2**20)
QUICK_SIZES = (64 * 2**10,)
LAYOUT = KVLayout(16, 8, 64, "bfloat16")
CHUNK, TOKENS = 256, 2048
OBJECTS = 4


def make(name: str, folder: Path) -> tuple[StoragePlugin, StorageBackend]:
    record = registry().get(StoragePlugin, name)
    context = StorageContext(instance_id="bench", location=record.location, capacity_bytes=None, data_dir=folder)
    return record, record.factory(registry().options(record), context)


# --- backends ---------------------------------------------------------------------------------------------------------


def run_backend(report: Report, name: str, size: int, seconds: float) -> None:
    """Put and get of distinct objects, which are few so that memory stays small."""
    blobs = {f"m.{number:x}": os.urandom(size) for number in range(OBJECTS)}
    with tempfile.TemporaryDirectory() as folder:
        _, backend = make(name, Path(folder))
        names = _turns(blobs)
        try:
            for blob_name, blob in blobs.items():
                backend.put(blob_name, blob)
                if bytes(backend.get(blob_name) or b"") != blob:
                    raise SystemExit(f"{name} returned something else than what was put")

            def put() -> None:
                blob_name = next(names)
                backend.put(blob_name, blobs[blob_name])

            def get() -> None:
                blob = backend.get(next(names))
                assert blob is not None
                if name not in BY_REFERENCE:
                    np.bitwise_xor.reduce(np.frombuffer(blob, np.uint64))

            metrics = {"put_seconds": measure(put, seconds), "get_seconds": measure(get, seconds)}
            report.add("backend", metrics, backend=name, blob_bytes=size, by_reference=name in BY_REFERENCE)
        finally:
            for blob_name in blobs:
                backend.delete(blob_name)
            backend.close()


def _turns(blobs: dict[str, bytes]) -> Any:
    while True:
        yield from blobs


# --- stores -----------------------------------------------------------------------------------------------------------


def sample_kv(num_tokens: int) -> KVTensor:
    """KV with the spread of a real cache: normal values, each channel at its own scale."""
    rng = np.random.default_rng(0)
    scale = rng.lognormal(0, 1, (LAYOUT.num_layers, LAYOUT.planes, 1, LAYOUT.num_kv_heads, LAYOUT.head_dim))
    values = rng.standard_normal(LAYOUT.shape(num_tokens), dtype=np.float32) * scale.astype(np.float32)
    return KVTensor(LAYOUT, values.astype(LAYOUT.np_dtype))


def make_store(name: str, method: str, folder: Path) -> tuple[str, KVStore]:
    """A store with one tier, and the tier's location."""
    record, backend = make(name, folder)
    eviction, placement = registry().get(EvictionPlugin, "lru"), registry().get(PlacementPlugin, "broadcast")
    tier = Tier(
        location=record.location,
        backend=backend,
        capacity_bytes=None,
        policy=eviction.factory(eviction.options(), None),
        inline="inline" in record.capabilities,
    )
    store = KVStore(
        model="bench",
        layout=LAYOUT,
        hasher=ChunkHasher(HashSpec(CHUNK)),
        tiers=[tier],
        placement=placement.factory(placement.options()),
        codecs=CodecSet(),
        clock=WallClock(),
        on_change=lambda change: None,
        store_codec=method,
    )
    return record.location, store


async def run_store(report: Report, name: str, method: str, kv: KVTensor, seconds: float) -> None:
    """Save, load and clear one prompt, again and again; the first round warms up."""
    tokens = list(range(kv.num_tokens))
    saves: list[float] = []
    loads: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        location, store = make_store(name, method, Path(folder))
        try:
            begin = time.perf_counter()
            while len(loads) <= LEAST_CALLS or time.perf_counter() - begin < 2 * seconds:
                started = time.perf_counter()
                saved = await store.save(tokens, kv)
                middle = time.perf_counter()
                loaded = await store.load_prefix(tokens)
                loads.append(time.perf_counter() - middle)
                saves.append(middle - started)
                check(loaded.kv, kv, lossless=store.codecs.lossless(method))
                del loaded
                await store.clear(location)
        finally:
            await store.close()
    report.add(
        "store",
        {"save_seconds": saves[1:], "load_seconds": loads[1:]},
        backend=name,
        method=method,
        tokens=kv.num_tokens,
        chunk_tokens=CHUNK,
        raw_bytes=kv.nbytes,
        stored_bytes=saved.nbytes,
    )


def check(loaded: KVTensor | None, kv: KVTensor, *, lossless: bool) -> None:
    if loaded is None or loaded.num_tokens != kv.num_tokens:
        raise SystemExit("the store did not load all that was saved")
    if lossless and not np.array_equal(loaded.data.view(np.uint16), kv.data.view(np.uint16)):
        raise SystemExit("the store loaded something else than what was saved")


# --- report -----------------------------------------------------------------------------------------------------------


def print_tables(results: Iterable[dict[str, Any]]) -> None:
    backends, stores = [], []
    for result in results:
        medians = {metric: facts["median"] for metric, facts in result["metrics"].items()}
        if result["name"] == "backend":
            size, times = result["blob_bytes"], [medians["put_seconds"], medians["get_seconds"]]
            rates = ["by reference" if result["by_reference"] else f"{format_size(size / value)}/s" for value in times]
            backends.append([result["backend"], format_size(size), *(1e3 * value for value in times), *rates])
        else:
            raw, times = result["raw_bytes"], [medians["save_seconds"], medians["load_seconds"]]
            rates = [f"{format_size(raw / value)}/s" for value in times]
            share = f"{result['stored_bytes'] / raw:.0%}"
            stores.append([result["backend"], result["method"], share, *(1e3 * value for value in times), *rates])
    print(table(["backend", "blob", "put ms", "get ms", "put", "get"], backends))
    print()
    print(table(["store", "method", "stored", "save ms", "load ms", "save", "load"], stores))


def main() -> None:
    parser = argument_parser(__doc__, seconds=0.5, each="figure")
    parser.add_argument("--backend", action="append", help=f"only these; default: {', '.join(BACKENDS)}")
    parser.add_argument("--size", action="append", type=int, help="only these blob sizes, in bytes")
    parser.add_argument("--method", action="append", help=f"only these codecs; default: {', '.join(METHODS)}")
    arguments = parser.parse_args()
    seconds, sizes, num_tokens = arguments.seconds, arguments.size or SIZES, TOKENS
    if arguments.quick:
        seconds, sizes, num_tokens = 0.02, arguments.size or QUICK_SIZES, CHUNK
    parameters = {"seconds": seconds, "tokens": num_tokens, "objects": OBJECTS}
    report = Report("tiers", arguments, parameters, ("zstandard", "ml-dtypes", "blake3"))
    backends = arguments.backend or BACKENDS
    for name, size in product(backends, sizes):
        run_backend(report, name, size, seconds)
    kv = sample_kv(num_tokens)
    for name, method in product(backends, arguments.method or METHODS):
        asyncio.run(run_store(report, name, method, kv, seconds))
    print_tables(report.results)
    report.write()


if __name__ == "__main__":
    main()
