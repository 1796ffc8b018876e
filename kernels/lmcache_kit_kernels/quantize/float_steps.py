"""Float arithmetic in jax whose result does not depend on the device.

Two things differ between devices and compilers: whether ``x * factor + middle`` is contracted into one fused operation
with one rounding, and whether a float32 division is correctly rounded (XLA and Triton on NVIDIA use one that is not).
Denormal inputs may be flushed to zero too, which the quantizer's domain makes harmless.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

__all__ = ["exact_ratio", "power_of_two", "product_plus", "rounded_product"]

_MANTISSA = 23


def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.uint32)


def exact_ratio(middle: jax.Array, maximum: jax.Array, *, unroll: bool = False) -> jax.Array:
    """``middle / maximum`` rounded to nearest, by long division of the significands.

    Args:
        middle: int32, 1 to 63.
        maximum: float32, normal and at least 2**-100 where the result is used. Same shape as ``middle``.
        unroll: write out the loop: XLA makes one kernel of it on a GPU, and one per step of a loop.

    A quotient of two 24-bit significands is never halfway between two float32, so there is no tie to break.
    """
    numerator = _bits(middle.astype(jnp.float32))
    denominator = _bits(maximum)
    one = jnp.uint32(1 << _MANTISSA)
    n = (numerator & (one - 1)) | one
    m = (denominator & (one - 1)) | one
    below = (n < m).astype(jnp.uint32)
    exponent = (numerator >> _MANTISSA) + 127 - (denominator >> _MANTISSA) - below
    remainder = (n << below) - m

    def bit(_: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        quotient, rest = carry
        rest = rest << 1
        fits = (rest >= m).astype(jnp.uint32)
        return (quotient << 1) | fits, rest - fits * m

    quotient, remainder = jax.lax.fori_loop(0, _MANTISSA, bit, (jnp.ones_like(m), remainder), unroll=unroll or None)
    quotient = quotient + ((remainder << 1) > m).astype(jnp.uint32)
    # Adding rather than or-ing lets a quotient that rounded up to 2 carry into the exponent.
    return jax.lax.bitcast_convert_type((exponent << _MANTISSA) + (quotient - one), jnp.float32)


def product_plus(x: jax.Array, factor: jax.Array, addend: jax.Array, zero: jax.Array) -> jax.Array:
    """``x * factor + addend`` in float32 with both roundings.

    ``zero`` is a uint32 zero that the compiler cannot know to be one: an integer operation on the product's bits keeps
    it from being fused with the addition.
    """
    return rounded_product(x, factor, zero) + addend


def rounded_product(x: jax.Array, factor: jax.Array, zero: jax.Array) -> jax.Array:
    """``x * factor`` in float32, rounded whatever is done with it; ``zero`` as in :func:`product_plus`."""
    return jax.lax.bitcast_convert_type(_bits(x * factor) | zero, jnp.float32)


def power_of_two(exponent: jax.Array) -> jax.Array:
    """``2.0 ** exponent``, exactly, of int32 from -126 to 127."""
    return jax.lax.bitcast_convert_type((exponent + 127).astype(jnp.uint32) << _MANTISSA, jnp.float32)
