"""XLA implementation: one jitted function per direction."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmcache_kit_kernels.quantize.arguments import TINY, steps
from lmcache_kit_kernels.quantize.float_steps import exact_ratio, product_plus

__all__ = [
    "dequantize",
    "dequantize_traced",
    "quantize",
    "quantize_traced",
    "row_maxima",
    "unsigned_of",
    "usable_factor",
]

Array = np.ndarray[Any, np.dtype[Any]]


def unsigned_of(dtype: Any) -> Any:
    """The unsigned dtype as wide as ``dtype``."""
    return jnp.dtype(f"uint{8 * jnp.dtype(dtype).itemsize}")


def row_maxima(blocks: jax.Array) -> jax.Array:
    """Largest magnitudes ``[B, T]`` of ``[B, T, C]``, taken as integers: exact, and NaN stays NaN."""
    unsigned = unsigned_of(blocks.dtype)
    mask = unsigned.type((1 << (8 * unsigned.itemsize - 1)) - 1)
    largest = jnp.max(jax.lax.bitcast_convert_type(blocks, unsigned) & mask, axis=-1)
    return jax.lax.bitcast_convert_type(largest, blocks.dtype)


def usable_factor(middle: jax.Array, maxima: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether a token can be scaled, and by what; ``middle`` is int32 and broadcasts to ``maxima``."""
    wide = maxima.astype(jnp.float32)
    usable = (wide >= TINY) & (wide < jnp.inf)
    ratio = exact_ratio(jnp.broadcast_to(middle, wide.shape), jnp.where(usable, wide, 1))
    return usable, jnp.where(usable, ratio, 0)


@jax.jit
def quantize_traced(blocks: jax.Array, levels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Symbols and maxima, also for use inside other jitted functions; ``levels`` must be an argument of those."""
    middle = (levels // 2)[:, None]
    maxima = row_maxima(blocks)
    usable, factor = usable_factor(middle, maxima)
    zero = (levels >> 30).astype(jnp.uint32)[:, None, None]
    scaled = product_plus(blocks.astype(jnp.float32), factor[..., None], middle[..., None].astype(jnp.float32), zero)
    symbols = jax.lax.round(scaled, jax.lax.RoundingMethod.TO_NEAREST_EVEN).astype(jnp.uint8)
    return jnp.where(usable[..., None], symbols, middle[..., None].astype(jnp.uint8)), maxima


def quantize(blocks: Array, levels: Array) -> tuple[Array, Array]:
    """See :func:`lmcache_kit_kernels.quantize.quantize`."""
    symbols, maxima = quantize_traced(blocks, levels)
    return np.asarray(symbols), np.asarray(maxima)


@jax.jit
def dequantize_traced(symbols: jax.Array, maxima: jax.Array, table: jax.Array) -> jax.Array:
    """Blocks whose symbols stand for ``table`` times the maximum, also for use inside other jitted functions."""
    step = jnp.take(table, symbols.astype(jnp.int32), mode="clip")
    return (step * maxima.astype(jnp.float32)[..., None]).astype(maxima.dtype)


def dequantize(symbols: Array, maxima: Array, levels: Array) -> Array:
    """See :func:`lmcache_kit_kernels.quantize.dequantize`."""
    blocks = np.empty(symbols.shape, dtype=maxima.dtype)
    for level in np.unique(levels):
        some = np.flatnonzero(levels == level)
        blocks[some] = dequantize_traced(symbols[some], maxima[some], steps(int(level)))
    return blocks
