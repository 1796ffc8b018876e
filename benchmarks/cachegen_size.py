"""What cachegen's bytes consist of, and how near the coder comes to the entropy under the tables that it uses.

The KV is random (`lmcache_kit.codec_tools.random_kv`), bfloat16. The entropy is the sum over all symbols of
-log2(frequency / 1024) under the table of their channel: what an ideal coder would need with these tables. `coded` is
what ours writes for them: words, a state per lane and a count per group. Nothing is timed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from harness import Report, argument_parser, table

from lmcache_kit.codec_tools import random_kv
from lmcache_kit.errors import LMCacheKitError
from lmcache_kit.kv.layout import KVLayout

try:
    from lmcache_kit_cachegen.levels import LEVELS
    from lmcache_kit_cachegen.method import CacheGen
    from lmcache_kit_cachegen.options import CacheGenOptions
    from lmcache_kit_kernels import blocks as kernel
    from lmcache_kit_kernels import rans
except ModuleNotFoundError as error:
    raise SystemExit(f"error: this benchmark needs {error.name}, which is not installed") from None

SHAPES = ("32,2,256,8,128", "32,2,2048,8,128")
QUICK_SHAPES = ("4,2,256,2,64",)


def entropy_bits(coded: Any, settings: Any, tokens: int) -> float:
    """Of the symbols of coded blocks under their channels' tables."""
    bits, first = 0.0, 0
    for block, levels in enumerate(settings.levels):
        words = int(coded.counts[block].sum())
        chosen = coded.tables[block]
        streams = rans.Streams(
            coded.states[block : block + 1], coded.counts[block : block + 1], coded.words[first : first + words]
        )
        first += words
        table_set = settings.tables[levels]
        symbols = rans.decode(
            streams, chosen.reshape(1, settings.fold, -1), table_set, tokens * settings.fold, group=settings.group
        ).reshape(tokens, -1)
        frequencies = table_set.frequencies[chosen[None, :], symbols].astype(np.float64)
        bits += float(np.log2(1024 / frequencies).sum())
    return bits


def measure(report: Report, shape: str, options: CacheGenOptions, seed: int) -> None:
    layers, planes, tokens, heads, dim = (int(part) for part in shape.split(","))
    kv = random_kv(KVLayout(layers, heads, dim, "bfloat16", planes), tokens, seed)
    method = CacheGen(options)
    header, settings = method.header_and_settings(kv.layout, tokens, 1)
    coded = kernel.encode(kv.data.reshape(header.blocks, tokens, header.channels), settings, backend="numba")
    payload = method.encode(kv)
    back = method.decode(memoryview(payload), kv.layout, tokens, method.version).data.astype(np.float32)
    exact = kv.data.astype(np.float32)
    ideal = entropy_bits(coded, settings, tokens) / 8
    stream = 2 * coded.words.size + coded.states.nbytes + coded.counts.nbytes
    name = "lmcache" if options.quantizer == "lmcache" else f"uniform {options.effective_level}"
    report.add(
        name,
        {},
        shape=shape,
        raw_bytes=kv.nbytes,
        encoded_bytes=len(payload),
        bits_per_element=8 * len(payload) / kv.data.size,
        nmse=float(np.square(back - exact, dtype=np.float64).sum() / np.square(exact, dtype=np.float64).sum()),
        entropy_bytes=round(ideal),
        coded_bytes=stream,
        over_entropy=stream / ideal - 1,
        words_bytes=2 * coded.words.size,
        states_bytes=coded.states.nbytes,
        counts_bytes=coded.counts.nbytes,
        other_bytes=len(payload) - stream,
    )


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--shape", action="append", metavar="L,P,T,H,D", help=f"default: {' and '.join(SHAPES)}")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    distributions = ("lmcache-kit-cachegen", "lmcache-kit-kernels", "numba", "ml-dtypes")
    report = Report("cachegen_size", arguments, {"seed": arguments.seed}, distributions)
    for shape in arguments.shape or (QUICK_SHAPES if arguments.quick else SHAPES):
        measure(report, shape, CacheGenOptions(quantizer="lmcache"), arguments.seed)
        for level in LEVELS:
            try:
                measure(report, shape, CacheGenOptions(level=level), arguments.seed)
            except LMCacheKitError as error:
                raise SystemExit(f"error: {error}") from None
    columns = ["L,P,T,H,D", "quantizer", "bytes", "bit/element", "nmse", "entropy", "coded", "over it", "other"]
    keys = ("encoded_bytes", "bits_per_element", "nmse", "entropy_bytes", "coded_bytes", "over_entropy", "other_bytes")
    print(table(columns, [[row["shape"], row["name"], *(row[key] for key in keys)] for row in report.results]))
    report.write()


if __name__ == "__main__":
    main()
