"""Size, error and speed of the compression methods on one KV tensor of each shape.

The tensor is random, in bfloat16: normal values whose spread and mean differ from channel to channel and whose size
differs from token to token (`lmcache_kit.codec_tools.random_kv`). Real KV compresses differently; `lmcache-kit codec
bench --input` measures on a model's own. This script keeps every sample, for the record.
Speeds are uncompressed bytes per second, from the KV to a bytes object and from there to KV that is read once; they
are medians, after a first call that is reported on its own. `naive` encodes by one copy and decodes to a view of its
payload, so its figures are those of memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from harness import Report, argument_parser, measure, table

from lmcache_kit.cli.values import key_values
from lmcache_kit.codec_tools import difference, random_kv
from lmcache_kit.contracts.compression import CompressionMethod
from lmcache_kit.contracts.records import CompressionPlugin
from lmcache_kit.errors import UnknownNameError
from lmcache_kit.kv.layout import KVLayout, KVTensor
from lmcache_kit.plugins import registry

SHAPES = ("8,2,256,4,64", "32,2,256,8,128")
QUICK_SHAPES = ("2,2,64,2,32",)
METHODS = ("naive", "zstd", "fp8", "cachegen")
DISTRIBUTIONS = ("zstandard", "ml-dtypes", "jax", "lmcache-kit-cachegen", "lmcache-kit-kernels")


def make_kv(shape: str, seed: int) -> KVTensor:
    layers, planes, tokens, heads, dim = (int(part) for part in shape.split(","))
    return random_kv(KVLayout(layers, heads, dim, "bfloat16", planes), tokens, seed)


def read(kv: KVTensor) -> int:
    """Touch every byte, so that a method which decodes lazily is not taken for a fast one."""
    return int(np.bitwise_xor.reduce(kv.data.reshape(-1).view(np.uint64)))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def run(report: Report, name: str, method: CompressionMethod, shape: str, kv: KVTensor, seconds: float) -> None:
    def encode() -> bytes:
        return bytes(method.encode(kv))

    def decode() -> KVTensor:
        decoded = method.decode(memoryview(payload), kv.layout, kv.num_tokens, method.version)
        read(decoded)
        return decoded

    first_encode, payload = timed(encode)
    first_decode, decoded = timed(decode)
    metrics = {"encode_seconds": measure(encode, seconds), "decode_seconds": measure(decode, seconds)}
    error = difference(kv, decoded)
    report.add(
        name,
        metrics,
        shape=shape,
        device=method.device,
        raw_bytes=kv.nbytes,
        encoded_bytes=len(payload),
        ratio=kv.nbytes / len(payload),
        bits_per_element=8 * len(payload) / kv.data.size,
        nmse=error.nmse,
        max_abs_error=error.max_abs_error,
        first_encode_seconds=first_encode,
        first_decode_seconds=first_decode,
    )


def print_table(results: Iterable[dict[str, Any]]) -> None:
    columns = ["L,P,T,H,D", "method", "ratio", "bit/element", "nmse", "encode MB/s", "decode MB/s", "device"]
    rows = []
    for result in results:
        speeds = [
            result["raw_bytes"] / 1e6 / result["metrics"][metric]["median"]
            for metric in ("encode_seconds", "decode_seconds")
        ]
        facts = [result[key] for key in ("shape", "name", "ratio", "bits_per_element", "nmse")]
        rows.append([*facts, *speeds, result["device"]])
    print(table(columns, rows))


def main() -> None:
    parser = argument_parser(__doc__, seconds=1.5, each="figure")
    parser.add_argument("--shape", action="append", metavar="L,P,T,H,D", help=f"default: {' and '.join(SHAPES)}")
    parser.add_argument("--method", action="append", help=f"default: those installed of {', '.join(METHODS)}")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="option of every --method")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    options = key_values(arguments.set, "--set")
    seconds = 0.0 if arguments.quick else arguments.seconds
    parameters = {"seconds": seconds, "seed": arguments.seed, "options": options}
    report = Report("codecs", arguments, parameters, DISTRIBUTIONS)
    for shape in arguments.shape or (QUICK_SHAPES if arguments.quick else SHAPES):
        kv = make_kv(shape, arguments.seed)
        for name in arguments.method or METHODS:
            try:
                record = registry().get(CompressionPlugin, name)
            except UnknownNameError:
                if arguments.method:
                    raise
                continue
            run(report, name, record.factory(registry().options(record, options)), shape, kv, seconds)
    print_table(report.results)
    report.write()


if __name__ == "__main__":
    main()
