"""Records and options of the built-in compression methods."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from lmcache_kit.contracts.compression import CompressionMethod
from lmcache_kit.contracts.records import CompressionPlugin, Options

__all__ = ["RECORDS", "ZstdOptions"]


class ZstdOptions(Options, frozen=True):
    """Options of ``zstd``.

    Args:
        level: 1 (fastest) to 22. Higher levels look harder for repetitions, of which KV has few: see
            ``lmcache_kit.builtin.compression.zstd`` for measured sizes.
        shuffle: store first the first bytes of all elements, then the second ones and so on, so that the bytes with
            sign and exponent, which repeat, stand together.
    """

    level: Annotated[int, Meta(ge=1, le=22)] = 1
    shuffle: bool = True


def _naive(options: Options) -> CompressionMethod:
    from lmcache_kit.builtin.compression.naive import NaiveMethod

    return NaiveMethod()


def _zstd(options: Options) -> CompressionMethod:
    from lmcache_kit.builtin.compression.zstd import ZstdMethod

    assert isinstance(options, ZstdOptions)
    return ZstdMethod(level=options.level, shuffle=options.shuffle)


def _fp8(options: Options) -> CompressionMethod:
    from lmcache_kit.builtin.compression.fp8 import Fp8Method

    return Fp8Method()


RECORDS: tuple[CompressionPlugin, ...] = (
    CompressionPlugin(
        name="naive",
        summary="the bytes as they are",
        factory=_naive,
        capabilities=frozenset({"lossless", "deterministic"}),
    ),
    CompressionPlugin(
        name="zstd",
        summary="lossless; Zstandard over byte planes",
        factory=_zstd,
        options=ZstdOptions,
        capabilities=frozenset({"lossless", "deterministic"}),
    ),
    CompressionPlugin(
        name="fp8",
        summary="8-bit floats (e4m3) with one exponent per head vector; error at most 1/16 of each value",
        factory=_fp8,
        capabilities=frozenset({"deterministic"}),
    ),
)
