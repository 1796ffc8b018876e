"""The record that offers the method; importing it loads neither the kernels nor jax."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from lmcache_kit.contracts.compression import CompressionMethod
from lmcache_kit.contracts.records import CompressionPlugin, Options
from lmcache_kit.hookspecs import hookimpl

__all__ = ["CacheGenOptions", "lmcache_kit_compression_methods"]


class CacheGenOptions(Options, frozen=True):
    """Options of ``cachegen``.

    Args:
        backend: ``numpy``, ``xla`` (jax on the CPU) or ``auto``, the one that measured faster. The bytes are the same.
    """

    backend: Literal["auto", "numpy", "xla"] = "auto"


def _make(options: Options) -> CompressionMethod:
    from lmcache_kit_cachegen.method import CacheGen

    assert isinstance(options, CacheGenOptions)
    return CacheGen(options)


@hookimpl
def lmcache_kit_compression_methods() -> Iterable[CompressionPlugin]:
    yield CompressionPlugin(
        name="cachegen",
        summary="lossy, 4 to 6 times smaller: quantized per token, entropy coded per channel (CPU)",
        factory=_make,
        options=CacheGenOptions,
        capabilities=frozenset({"deterministic"}),
    )
