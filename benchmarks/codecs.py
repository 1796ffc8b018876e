"""Size, error and speed of the compression methods on one KV tensor of each shape.

The tensor is random: normal values whose spread and mean differ from channel to channel and whose size differs from
token to token, in bfloat16. Speeds are uncompressed bytes per second, from the KV to a bytes object and from there to
KV: the best of several runs, after a first call that is reported on its own. ``naive`` decodes to a view of its
payload, which costs nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from lmcache_kit.contracts.compression import CompressionMethod
from lmcache_kit.contracts.records import CompressionPlugin
from lmcache_kit.kv.layout import KVLayout, KVTensor
from lmcache_kit.plugins import registry

SHAPES = ("8,2,256,4,64", "32,2,256,8,128")
METHODS = ("naive", "zstd", "fp8", "cachegen")
COLUMNS = {
    "shape": "L,P,T,H,D",
    "method": "method",
    "ratio": "ratio",
    "bits_per_element": "bit/element",
    "nmse": "nmse",
    "encode_gbps": "encode GB/s",
    "decode_gbps": "decode GB/s",
}


def make_kv(shape: str, seed: int) -> KVTensor:
    layers, planes, tokens, heads, dim = (int(part) for part in shape.split(","))
    layout = KVLayout(layers, heads, dim, "bfloat16", planes)
    rng = np.random.default_rng(seed)
    data = rng.standard_normal(layout.shape(tokens), dtype=np.float32)
    data *= np.exp(rng.standard_normal((layers, planes, 1, heads, dim), dtype=np.float32) / 2)
    data += rng.standard_normal((layers, planes, 1, heads, dim), dtype=np.float32) / 2
    data *= np.exp(rng.standard_normal((layers, planes, tokens, 1, 1), dtype=np.float32) / 4)
    return KVTensor(layout, data.astype(layout.np_dtype))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def measure(name: str, method: CompressionMethod, kv: KVTensor, shape: str, runs: int) -> dict[str, Any]:
    def encode() -> bytes:
        return bytes(method.encode(kv))

    def decode() -> KVTensor:
        return method.decode(memoryview(payload), kv.layout, kv.num_tokens, method.version)

    first_encode, payload = timed(encode)
    first_decode, decoded = timed(decode)
    best_encode = min(timed(encode)[0] for _ in range(runs))
    best_decode = min(timed(decode)[0] for _ in range(runs))
    exact = kv.data.astype(np.float32)
    error = decoded.data.astype(np.float32) - exact
    return {
        "name": f"{name} {shape}",
        "shape": shape,
        "method": name,
        "device": method.device,
        "raw_bytes": kv.nbytes,
        "encoded_bytes": len(payload),
        "ratio": kv.nbytes / len(payload),
        "bits_per_element": 8 * len(payload) / kv.data.size,
        "nmse": float(np.square(error, dtype=np.float64).sum() / np.square(exact, dtype=np.float64).sum()),
        "max_abs_error": float(np.abs(error).max()),
        "encode_gbps": kv.nbytes / best_encode / 1e9,
        "decode_gbps": kv.nbytes / best_decode / 1e9,
        "encode_first_seconds": first_encode,
        "decode_first_seconds": first_decode,
    }


def table(results: list[dict[str, Any]]) -> str:
    rows = [list(COLUMNS.values())]
    for result in results:
        cells = [result[key] for key in COLUMNS]
        rows.append([f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", action="append", metavar="L,P,T,H,D", help=f"default: {' and '.join(SHAPES)}")
    parser.add_argument("--method", action="append", help=f"default: {', '.join(METHODS)}")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="option of every --method")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the results as JSON to this file")
    arguments = parser.parse_args()
    options = dict(pair.split("=", 1) for pair in arguments.set)
    results = []
    for shape in arguments.shape or SHAPES:
        kv = make_kv(shape, arguments.seed)
        for name in arguments.method or METHODS:
            record = registry().get(CompressionPlugin, name)
            method = record.factory(registry().options(record, options))
            results.append(measure(name, method, kv, shape, arguments.runs))
    print(table(results))
    if arguments.output:
        report = {
            "host": {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()},
            "versions": {name: metadata.version(name) for name in ("lmcache-kit", "numpy")},
            "seed": arguments.seed,
            "runs": arguments.runs,
            "options": options,
            "results": results,
        }
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
