"""Size, error and speed of a compression method on made-up KV."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lmcache_kit.codec_tools import Choice, measure_method, random_kv
from lmcache_kit.contracts.records import CompressionPlugin, Options
from lmcache_kit.kv.layout import KVLayout

__all__ = ["measure"]

_LAYOUT = KVLayout(8, 4, 64, "bfloat16")
_TOKENS = 256


def measure(
    record: CompressionPlugin, options: Options, *, seconds: float, sample: Path | None
) -> Mapping[str, float | int | str | None]:
    """Figures on one chunk of 2 MiB; ``lmcache-kit codec bench`` measures more, and on KV of a model."""
    choice = Choice(record, options, {})
    found = measure_method(choice, choice.make(), random_kv(_LAYOUT, _TOKENS, 0), seconds)
    return {
        "ratio": found.ratio,
        "bits per element": found.bits_per_element,
        "nmse": found.nmse,
        "encode GB/s": found.encode_gbps,
        "decode GB/s": found.decode_gbps,
    }
