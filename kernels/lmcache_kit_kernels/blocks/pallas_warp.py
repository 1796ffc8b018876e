"""What the 32 lanes of a warp do together, and float steps that no compiler may fuse.

Compiled kernels say these in PTX, through Pallas's inline assembly; under the interpreter, which has none, the same
results are computed in plain jax. A vector of ``LANES`` elements has one element in each lane of a program, in
order: each 32 of them are a warp.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plgpu

from lmcache_kit_kernels.blocks.config import CONFIG
from lmcache_kit_kernels.pallas_tools import shape_of

__all__ = ["GROUP_LANES", "LANES", "exact_product", "integers", "quotient", "rank_and_total", "rounded"]

GROUP_LANES = 32
"""Lanes that share a run: one warp."""
LANES = GROUP_LANES * CONFIG.warps
"""Lanes of a program."""

# Adding 1.5 * 2**23 to a float32 of less than 2**22 rounds it to an integer, half to even, in the low bits of the sum.
_ROUNDER = 12582912.0
_ROUNDER_BITS = 0x4B400000


# Results are int32 or float32: lowering gives an unsigned result a type that the operations after it refuse.
def _asm(code: str, constraints: str, dtype: Any, *args: jax.Array) -> jax.Array:
    shape = shape_of(args[0].shape, dtype)
    (result,) = plgpu.elementwise_inline_asm(
        code, args=args, constraints=constraints, pack=1, result_shape_dtypes=[shape]
    )
    return result


def exact_product(x: jax.Array, y: jax.Array, zero: jax.Array, *, interpret: bool) -> jax.Array:
    """``x * y`` in float32, rounded, and never fused with an addition that follows.

    ``zero`` is a uint32 zero that XLA cannot know to be one; an integer operation on the bits keeps it from fusing.
    """
    if interpret:
        bits = jax.lax.bitcast_convert_type(x * y, jnp.uint32)
        return jax.lax.bitcast_convert_type(bits | zero, jnp.float32)
    return _asm("mul.rn.f32 $0, $1, $2;", "=f,f,f", jnp.float32, x, jnp.broadcast_to(y, x.shape))


def rounded(x: jax.Array) -> jax.Array:
    """int32 of float32 below 2**22 in magnitude, half to even."""
    return jax.lax.bitcast_convert_type(x + _ROUNDER, jnp.int32) - _ROUNDER_BITS


def integers(x: jax.Array) -> jax.Array:
    """float32 of int32 below 2**22 in magnitude; cheaper than a conversion, whose unit is narrow."""
    return jax.lax.bitcast_convert_type(x + _ROUNDER_BITS, jnp.float32) - _ROUNDER


def quotient(x: jax.Array, f: jax.Array, reciprocal: jax.Array, *, interpret: bool) -> jax.Array:
    """``x // f`` of uint32 where ``x < f * 2**22`` and ``reciprocal = (2**32 - 1) // f``.

    The high half of ``x * reciprocal`` is the quotient or one less.
    """
    if interpret:
        return x // f
    q = _asm("mul.hi.u32 $0, $1, $2;", "=r,r,r", jnp.int32, x, reciprocal).astype(jnp.uint32)
    return q + (x - q * f >= f).astype(jnp.uint32)


def rank_and_total(chosen: jax.Array, *, interpret: bool) -> tuple[jax.Array, jax.Array]:
    """For bool ``[LANES]``: how many lanes of its warp before each are chosen, and how many in all; both int32."""
    if interpret:
        whole = chosen.astype(jnp.int32).reshape(-1, GROUP_LANES)
        total = jnp.broadcast_to(jnp.sum(whole, axis=1, keepdims=True), whole.shape)
        return (jnp.cumsum(whole, axis=1) - whole).reshape(LANES), total.reshape(LANES)
    ballot = _asm(
        "{ .reg .pred p; setp.ne.u32 p, $1, 0; vote.sync.ballot.b32 $0, p, 0xffffffff; }",
        "=r,r",
        jnp.int32,
        chosen.astype(jnp.int32),
    )
    before = (1 << (jnp.arange(LANES, dtype=jnp.int32) % GROUP_LANES)) - 1
    rank = _asm("popc.b32 $0, $1;", "=r,r", jnp.int32, ballot & before)
    return rank, _asm("popc.b32 $0, $1;", "=r,r", jnp.int32, ballot)
