"""The record that offers the method; importing it loads neither the kernels nor jax, torch or numba."""

from __future__ import annotations

from collections.abc import Iterable

from lmcache_kit.contracts.compression import CompressionMethod
from lmcache_kit.contracts.records import CompressionPlugin, Options
from lmcache_kit.hookspecs import hookimpl
from lmcache_kit_cachegen.options import CacheGenOptions

__all__ = ["lmcache_kit_compression_methods"]


def _make(options: Options) -> CompressionMethod:
    from lmcache_kit_cachegen.compute import wants_gpu

    assert isinstance(options, CacheGenOptions)
    if wants_gpu(options) and options.backend != "xla":
        from lmcache_kit_cachegen.compute import choose

        choose(options)  # before jax is imported: see there
        from lmcache_kit_cachegen.gpu import GpuCacheGen

        return GpuCacheGen(options)
    from lmcache_kit_cachegen.method import CacheGen

    return CacheGen(options)


@hookimpl
def lmcache_kit_compression_methods() -> Iterable[CompressionPlugin]:
    yield CompressionPlugin(
        name="cachegen",
        summary="lossy, 2 to 11 times smaller by level: quantized per block, entropy coded per channel",
        factory=_make,
        options=CacheGenOptions,
        capabilities=frozenset({"deterministic"}),
    )
