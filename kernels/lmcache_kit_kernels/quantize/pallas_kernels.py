"""The Pallas kernels (Triton backend): one program per token.

A program reads its token twice, first for the maximum and then, from cache, to scale it; nothing in between goes
through memory. Channels are taken in strips of a power of two, as Triton wants, the last one masked.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from lmcache_kit_kernels.pallas_tools import shape_of, unsigned_of, widen
from lmcache_kit_kernels.quantize.arguments import TINY
from lmcache_kit_kernels.quantize.float_steps import exact_ratio, product_plus

__all__ = ["dequantize", "quantize"]

_STRIP = 1024
_WARPS = 4
# Adding 2**23 to a float32 below it rounds it to an integer, half to even, and leaves that integer in the low bits.
_ROUNDER = float(1 << 23)


def _strip(channels: int) -> int:
    return min(_STRIP, 1 << (channels - 1).bit_length())


def _quantize_kernel(
    bits_ref: Any, levels_ref: Any, symbols_ref: Any, maxima_ref: Any, *, dtype: Any, channels: int
) -> None:
    block, token = pl.program_id(0), pl.program_id(1)
    strip = _strip(channels)
    unsigned = bits_ref.dtype
    magnitude = unsigned.type((1 << (8 * unsigned.itemsize - 1)) - 1)
    offsets = jnp.arange(strip)
    strips = pl.cdiv(channels, strip)

    def load(index: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        column = index * strip + offsets
        inside = column < channels
        return plgpu.load(bits_ref.at[block, token, column], mask=inside, other=0), column, inside

    def largest(index: Any, so_far: jax.Array) -> jax.Array:
        values, _, _ = load(index)
        return jnp.maximum(so_far, (values & magnitude).astype(jnp.int32))

    top = jnp.max(jax.lax.fori_loop(0, strips, largest, jnp.zeros((strip,), jnp.int32)))
    maxima_ref[block, token] = top.astype(unsigned)
    wide = widen(top.astype(unsigned), dtype)
    usable = (wide >= TINY) & (wide < jnp.inf)
    levels = levels_ref[block]
    middle = levels // 2
    factor = jnp.where(usable, exact_ratio(middle, jnp.where(usable, wide, 1.0)), 0.0)
    zero = (levels >> 30).astype(jnp.uint32)

    def scale(index: Any, _: None) -> None:
        values, column, inside = load(index)
        scaled = product_plus(widen(values, dtype), factor, middle.astype(jnp.float32), zero)
        bits = jax.lax.bitcast_convert_type(scaled + _ROUNDER, jnp.uint32) & 127
        symbols = jnp.where(usable, bits, middle.astype(jnp.uint32)).astype(jnp.uint8)
        plgpu.store(symbols_ref.at[block, token, column], symbols, mask=inside)

    jax.lax.fori_loop(0, strips, scale, None)


@functools.partial(jax.jit, static_argnames="interpret")
def quantize(blocks: jax.Array, levels: jax.Array, *, interpret: bool) -> tuple[jax.Array, jax.Array]:
    """Symbols ``[B, T, C]`` and maxima ``[B, T]``."""
    count, tokens, channels = blocks.shape
    # Values and maxima cross the kernel's border as bits: a NaN may change its payload on the way through a float.
    unsigned = unsigned_of(blocks.dtype)
    symbols, bits = pl.pallas_call(
        functools.partial(_quantize_kernel, dtype=blocks.dtype, channels=channels),
        grid=(count, tokens),
        out_shape=(
            shape_of(blocks.shape, jnp.uint8),
            shape_of((count, tokens), unsigned),
        ),
        compiler_params=plgpu.CompilerParams(num_warps=_WARPS),
        interpret=interpret,
        name="quantize",
    )(jax.lax.bitcast_convert_type(blocks, unsigned), levels)
    return symbols, jax.lax.bitcast_convert_type(bits, blocks.dtype)


def _dequantize_kernel(symbols_ref: Any, maxima_ref: Any, table_ref: Any, out_ref: Any, *, channels: int) -> None:
    block, token = pl.program_id(0), pl.program_id(1)
    strip = _strip(channels)
    offsets = jnp.arange(strip)
    maximum = maxima_ref[block, token].astype(jnp.float32)

    def scale(index: Any, _: None) -> None:
        column = index * strip + offsets
        inside = column < channels
        symbols = plgpu.load(symbols_ref.at[block, token, column], mask=inside, other=0)
        step = plgpu.load(table_ref.at[block, symbols.astype(jnp.int32)])
        plgpu.store(out_ref.at[block, token, column], (step * maximum).astype(out_ref.dtype), mask=inside)

    jax.lax.fori_loop(0, pl.cdiv(channels, strip), scale, None)


@functools.partial(jax.jit, static_argnames="interpret")
def dequantize(symbols: jax.Array, maxima: jax.Array, table: jax.Array, *, interpret: bool) -> jax.Array:
    """Values ``[B, T, C]``; ``table`` is float32 ``[B, 128]``, the step of each symbol of each block."""
    count, tokens, channels = symbols.shape
    values: jax.Array = pl.pallas_call(
        functools.partial(_dequantize_kernel, channels=channels),
        grid=(count, tokens),
        out_shape=shape_of(symbols.shape, maxima.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=_WARPS),
        interpret=interpret,
        name="dequantize",
    )(symbols, maxima, table)
    return values
