"""What the encoder must know before it codes (Pallas, Triton backend): maxima of tokens and sums of channels."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from lmcache_kit_kernels.blocks.config import CONFIG
from lmcache_kit_kernels.blocks.pallas_encode import over_tokens
from lmcache_kit_kernels.blocks.pallas_warp import LANES, exact_product
from lmcache_kit_kernels.pallas_tools import shape_of, unsigned_of, widen

__all__ = ["channel_sums", "residual_maxima", "token_maxima"]

_SMALLEST = 2.0**-60


def _strip(channels: int) -> int:
    return min(CONFIG.strip, 1 << (channels - 1).bit_length())


def _over_strips(channels: int, body: Any, carry: Any) -> Any:
    """``carry = body(column, inside, carry)`` for strips of channels."""
    strip = _strip(channels)
    offsets = jnp.arange(strip, dtype=jnp.int32)

    def one(number: Any, carry: Any) -> Any:
        column = number * strip + offsets
        return body(column, column < channels, carry)

    return jax.lax.fori_loop(0, pl.cdiv(channels, strip), one, carry)


def _maxima_kernel(bits_ref: Any, out_ref: Any, *, channels: int) -> None:
    block, token = pl.program_id(0), pl.program_id(1)
    unsigned = bits_ref.dtype
    magnitude = unsigned.type((1 << (8 * unsigned.itemsize - 1)) - 1)

    def largest(column: jax.Array, inside: jax.Array, so_far: jax.Array) -> jax.Array:
        values = plgpu.load(bits_ref.at[block, token, column], mask=inside, other=0)
        return jnp.maximum(so_far, (values & magnitude).astype(jnp.int32))

    top = _over_strips(channels, largest, jnp.zeros((_strip(channels),), jnp.int32))
    out_ref[block, token] = jnp.max(top).astype(unsigned)


@functools.partial(jax.jit, static_argnames="interpret")
def token_maxima(blocks: jax.Array, *, interpret: bool) -> jax.Array:
    """Largest magnitude of each token, ``[B, T]`` in the dtype of ``blocks`` ``[B, T, C]``; that of a NaN is NaN."""
    count, tokens, channels = blocks.shape
    unsigned = unsigned_of(blocks.dtype)
    bits = pl.pallas_call(
        functools.partial(_maxima_kernel, channels=channels),
        grid=(count, tokens),
        out_shape=shape_of((count, tokens), unsigned),
        compiler_params=plgpu.CompilerParams(num_warps=CONFIG.warps),
        interpret=interpret,
        name="token_maxima",
    )(jax.lax.bitcast_convert_type(blocks, unsigned))
    return jax.lax.bitcast_convert_type(bits, blocks.dtype)


def _residual_kernel(
    bits_ref: Any,
    inverse_ref: Any,
    offsets_ref: Any,
    zero_ref: Any,
    out_ref: Any,
    *,
    dtype: Any,
    channels: int,
    interpret: bool,
) -> None:
    block, token = pl.program_id(0), pl.program_id(1)
    inverse, zero = inverse_ref[block], zero_ref[0]

    def largest(column: jax.Array, inside: jax.Array, so_far: jax.Array) -> jax.Array:
        wide = widen(plgpu.load(bits_ref.at[block, token, column], mask=inside, other=0), dtype)
        offset = plgpu.load(offsets_ref.at[block, column], mask=inside, other=0.0)
        moved = jnp.abs(exact_product(wide, inverse, zero, interpret=interpret) - offset)
        return jnp.maximum(so_far, moved)

    top = _over_strips(channels, largest, jnp.zeros((_strip(channels),), jnp.float32))
    out_ref[block, token] = jnp.max(top)


@functools.partial(jax.jit, static_argnames="interpret")
def residual_maxima(
    blocks: jax.Array, inverse: jax.Array, offsets: jax.Array, zero: jax.Array, *, interpret: bool
) -> jax.Array:
    """``max over c of |x * inverse - offset|``, float32 ``[B, T]``, of blocks ``[B, T, C]``."""
    count, tokens, channels = blocks.shape
    residual: jax.Array = pl.pallas_call(
        functools.partial(_residual_kernel, dtype=blocks.dtype, channels=channels, interpret=interpret),
        grid=(count, tokens),
        out_shape=shape_of((count, tokens), jnp.float32),
        compiler_params=plgpu.CompilerParams(num_warps=CONFIG.warps),
        interpret=interpret,
        name="residual_maxima",
    )(jax.lax.bitcast_convert_type(blocks, unsigned_of(blocks.dtype)), inverse, offsets, zero)
    return residual


def _to_bfloat16(wide: jax.Array) -> jax.Array:
    """float32 rounded to bfloat16, half to even, in integers: compilers drop a conversion there and back."""
    bits = jax.lax.bitcast_convert_type(wide, jnp.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _sums_kernel(
    bits_ref: Any, sums_ref: Any, squares_ref: Any, largest_ref: Any, *, dtype: Any, tokens: int, channels: int
) -> None:
    block = pl.program_id(0)
    channel = pl.program_id(1) * LANES + jnp.arange(LANES, dtype=jnp.int32)
    inside = channel < channels

    def add(some: Any, carry: Any) -> Any:
        total, squares, largest = carry
        for bits in [plgpu.load(bits_ref.at[block, t, channel], mask=inside, other=0) for t in some]:
            wide = widen(bits, dtype)
            largest = jnp.maximum(largest, jax.lax.bitcast_convert_type(jnp.abs(wide), jnp.int32))
            if dtype == jnp.float32:
                wide = _to_bfloat16(wide)
            wide = jnp.where(jnp.abs(wide) < _SMALLEST, 0.0, wide)
            # The product of two 16-bit floats is exact: fused or not, the sum is the same.
            total, squares = total + wide, squares + wide * wide
        return total, squares, largest

    zeros = jnp.zeros((LANES,), jnp.float32)
    total, squares, largest = over_tokens(0, tokens, add, (zeros, zeros, jnp.zeros((LANES,), jnp.int32)))
    plgpu.store(sums_ref.at[block, channel], total, mask=inside)
    plgpu.store(squares_ref.at[block, channel], squares, mask=inside)
    plgpu.store(largest_ref.at[block, channel], jax.lax.bitcast_convert_type(largest, jnp.float32), mask=inside)


@functools.partial(jax.jit, static_argnames="interpret")
def channel_sums(blocks: jax.Array, *, interpret: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums, sums of squares (both in the order of the tokens), largest magnitudes of channels: float32 ``[B, C]``."""
    count, tokens, channels = blocks.shape
    total, squares, largest = pl.pallas_call(
        functools.partial(_sums_kernel, dtype=blocks.dtype, tokens=tokens, channels=channels),
        grid=(count, pl.cdiv(channels, LANES)),
        out_shape=(shape_of((count, channels), jnp.float32),) * 3,
        compiler_params=plgpu.CompilerParams(num_warps=CONFIG.warps),
        interpret=interpret,
        name="channel_sums",
    )(jax.lax.bitcast_convert_type(blocks, unsigned_of(blocks.dtype)))
    return total, squares, largest
