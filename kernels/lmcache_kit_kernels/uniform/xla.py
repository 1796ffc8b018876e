"""XLA implementation: one jitted function per direction."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmcache_kit_kernels.quantize.float_steps import exact_ratio, power_of_two, product_plus, rounded_product
from lmcache_kit_kernels.uniform.arguments import (
    HALVING,
    LEVELS,
    MAX_EXPONENT,
    MAX_INVERSE,
    MAX_OFFSET,
    MEAN_DEPTH,
    MIDDLE,
    MIN_INVERSE,
    MIN_NORMAL,
    NEGLIGIBLE,
    ONE,
    SMALLEST_LARGEST,
    VARIANCE_DEPTH,
)

__all__ = [
    "dequantize",
    "dequantize_traced",
    "exponents_traced",
    "inverse_traced",
    "quantize",
    "quantize_traced",
    "refinements_traced",
    "scaling_traced",
    "token_share",
]

Array = np.ndarray[Any, np.dtype[Any]]


def token_share(tokens: int) -> np.float32:
    """``1 / tokens``, divided on the host, where division is correctly rounded."""
    return np.float32(1) / np.float32(tokens)


def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.uint32)


def _round(x: jax.Array) -> jax.Array:
    return jax.lax.round(x, jax.lax.RoundingMethod.TO_NEAREST_EVEN)


def _sums(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums ``[B, C]`` of values and squares, one token after another. A square is exact: fusing it does not matter."""
    counted = jnp.where(jnp.abs(values) < NEGLIGIBLE, 0, values)

    def add(carry: tuple[jax.Array, jax.Array], row: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        return (carry[0] + row, carry[1] + row * row), None

    zeros = jnp.zeros((values.shape[0], values.shape[2]), jnp.float32)
    sums, _ = jax.lax.scan(add, (zeros, zeros), jnp.swapaxes(counted, 0, 1))
    return sums


def _flush(values: jax.Array) -> jax.Array:
    return jnp.where(jnp.abs(values) < MIN_NORMAL, 0, values)


def _log_variance(variances: jax.Array, squares: jax.Array) -> jax.Array:
    logs, mean_logs = (_bits(array) >> 16 for array in (variances, squares))
    lowest = jnp.maximum(
        jnp.max(logs, axis=1).astype(jnp.int32) - VARIANCE_DEPTH,
        jnp.max(mean_logs, axis=1).astype(jnp.int32) - MEAN_DEPTH,
    )
    floor = jnp.maximum(lowest, 0).astype(jnp.uint32)
    total = jnp.sum(jnp.maximum(logs, floor[:, None]), axis=1, dtype=jnp.uint32)
    mean: jax.Array = (total // jnp.uint32(logs.shape[1])).astype(jnp.int32)
    return mean


def scaling_traced(
    first: jax.Array,
    second: jax.Array,
    largest_bits: jax.Array,
    ratio: jax.Array,
    log_variances: jax.Array | None,
    share: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Inverse patterns int32 ``[B]``, offsets float32 ``[B, C]`` and whether a block is usable so far, ``[B]``.

    ``first`` and ``second`` are the sums ``[B, C]`` of values and squares, ``largest_bits`` the float32 patterns of the
    largest magnitudes ``[B]``. A block that is not usable has an inverse of 1.
    """
    zero = (ratio >> 30).astype(jnp.uint32)
    mean = rounded_product(first, share, zero)
    squares = _flush(rounded_product(mean, mean, zero))
    variances = _flush(jnp.maximum(_flush(rounded_product(second, share, zero)) - squares, 0))
    usable = jnp.all(jnp.isfinite(first) & jnp.isfinite(second) & jnp.isfinite(variances), axis=1)
    # As integers: a denormal must not pass for zero.
    empty = largest_bits == 0
    largest = jax.lax.bitcast_convert_type(largest_bits, jnp.float32)
    logs = _log_variance(variances, squares) if log_variances is None else log_variances
    inverse_bits = jnp.where(empty, ONE, ratio + HALVING - (logs >> 1))
    usable &= empty | ((largest >= SMALLEST_LARGEST) & (largest < jnp.inf))
    usable &= (inverse_bits >= MIN_INVERSE) & (inverse_bits <= MAX_INVERSE)
    inverse_bits = jnp.where(usable, inverse_bits, ONE)
    offsets = _round(mean * inverse_traced(inverse_bits)[:, None])
    return inverse_bits, offsets, usable & (jnp.max(jnp.abs(offsets), axis=1) <= MAX_OFFSET)


def inverse_traced(inverse_bits: jax.Array) -> jax.Array:
    """float32 of bfloat16 patterns."""
    return jax.lax.bitcast_convert_type(inverse_bits.astype(jnp.uint32) << 16, jnp.float32)


def exponents_traced(far: jax.Array) -> jax.Array:
    """int32 of each token's largest ``|x * inverse - offset|``; above MAX_EXPONENT the block is not usable."""
    bounds = (MIDDLE + 0.5) * 2.0 ** np.arange(MAX_EXPONENT + 1)
    return jnp.sum(far[..., None] >= bounds.astype(np.float32), axis=-1, dtype=jnp.int32)


def refinements_traced(scaled: jax.Array, symbols: jax.Array, bits: int) -> jax.Array:
    """float32: where in its step each scaled value lies, below ``2**bits``."""
    rest = jnp.floor((scaled - symbols + 0.5) * (1 << bits))
    return jnp.clip(rest, 0, (1 << bits) - 1)


def quantize_traced(
    blocks: jax.Array,
    ratio: jax.Array,
    log_variances: jax.Array | None,
    share: jax.Array,
    *,
    refined: int,
    bits: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array]:
    """The fields of ``Uniform``, for use inside other jitted functions.

    ``ratio`` is int32 and ``share`` float32 ``1 / T``; both must be arguments of the jitted function, not constants.
    """
    zero = (ratio >> 30).astype(jnp.uint32)
    values = blocks.astype(jnp.float32)
    # Not a conversion to bfloat16 and back, which XLA may leave out as excess precision.
    rounded = values if blocks.dtype != jnp.float32 else jax.lax.reduce_precision(values, 8, 7)
    first, second = _sums(rounded)
    largest_bits = jnp.max(_bits(values) & jnp.uint32(0x7FFFFFFF), axis=(1, 2))
    inverse_bits, offsets, usable = scaling_traced(first, second, largest_bits, ratio, log_variances, share)
    moved = product_plus(values, inverse_traced(inverse_bits)[:, None, None], -offsets[:, None], zero)
    exponents = exponents_traced(jnp.max(jnp.abs(moved), axis=2))
    usable &= jnp.all(exponents <= MAX_EXPONENT, axis=1)
    scaled = moved * power_of_two(-exponents)[..., None]
    symbols = _round(scaled)
    wrapped = jnp.where(symbols < 0, symbols + LEVELS, symbols)

    def kept(array: jax.Array, dtype: Any, otherwise: int = 0) -> jax.Array:
        shape = (-1,) + (1,) * (array.ndim - 1)
        return jnp.where(usable.reshape(shape), array, otherwise).astype(dtype)

    refinements = None
    if refined:
        rest = refinements_traced(scaled[:, :refined], symbols[:, :refined], bits)
        refinements = kept(rest, jnp.uint8, 1 << bits >> 1)
    return (
        kept(exponents, jnp.uint8),
        kept(inverse_bits, jnp.uint16, ONE),
        kept(offsets, jnp.int16),
        kept(wrapped, jnp.uint8),
        refinements,
        usable,
    )


_quantize = functools.partial(jax.jit, static_argnames=("refined", "bits"))(quantize_traced)


def quantize(
    blocks: Array, ratio: int, log_variances: Array | None, refined: int, bits: int
) -> tuple[Array, Array, Array, Array, Array | None, Array]:
    """See :func:`lmcache_kit_kernels.uniform.quantize`; returns the fields of ``Uniform``."""
    share = token_share(blocks.shape[1])
    exponents, inverses, offsets, symbols, refinements, usable = _quantize(
        blocks, np.int32(ratio), log_variances, share, refined=refined, bits=bits
    )
    return (
        np.asarray(exponents),
        np.asarray(inverses),
        np.asarray(offsets),
        np.asarray(symbols),
        None if refinements is None else np.asarray(refinements),
        np.asarray(usable),
    )


def dequantize_traced(
    exponents: jax.Array,
    inverses: jax.Array,
    offsets: jax.Array,
    symbols: jax.Array,
    refinements: jax.Array | None,
    gains: jax.Array,
    *,
    dtype: Any,
    bits: int,
) -> jax.Array:
    """Blocks again, for use inside other jitted functions. Everything before the product with the step is exact."""
    inverse = jax.lax.bitcast_convert_type(inverses.astype(jnp.uint32) << 16, jnp.float32)
    step = exact_ratio(jnp.ones(inverse.shape, jnp.int32), inverse)
    wide = symbols.astype(jnp.int32)
    signed = jnp.where(wide > MIDDLE, wide - LEVELS, wide).astype(jnp.float32)
    units = signed * (gains.astype(jnp.float32) * (1 / 256))[:, None]
    if refinements is not None:
        count = refinements.shape[1]
        refined = signed[:, :count] + ((refinements.astype(jnp.float32) + 0.5) * 2.0**-bits - 0.5)
        units = jnp.concatenate([refined, units[:, count:]], axis=1)
    units = units * power_of_two(exponents.astype(jnp.int32))[..., None] + offsets.astype(jnp.float32)[:, None]
    return (units * step[:, None, None]).astype(dtype)


_dequantize = functools.partial(jax.jit, static_argnames=("dtype", "bits"))(dequantize_traced)


def dequantize(
    exponents: Array,
    inverses: Array,
    offsets: Array,
    symbols: Array,
    refinements: Array | None,
    gains: Array,
    dtype: np.dtype[Any],
    bits: int,
) -> Array:
    """See :func:`lmcache_kit_kernels.uniform.dequantize`."""
    return np.asarray(_dequantize(exponents, inverses, offsets, symbols, refinements, gains, dtype=dtype, bits=bits))
