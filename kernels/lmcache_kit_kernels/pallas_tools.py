"""What all Pallas kernels of the package use."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["shape_of", "unsigned_of", "widen"]


def shape_of(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """The type of an array, for a kernel's outputs."""
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]  # jax leaves it without annotations


def unsigned_of(dtype: Any) -> Any:
    """The unsigned integer as wide as ``dtype``."""
    return jnp.dtype(f"uint{8 * jnp.dtype(dtype).itemsize}")


def widen(bits: jax.Array, dtype: Any) -> jax.Array:
    """float32 of the values of ``dtype`` whose bits are given."""
    if dtype == jnp.bfloat16:
        return jax.lax.bitcast_convert_type(bits.astype(jnp.uint32) << 16, jnp.float32)
    return jax.lax.bitcast_convert_type(bits, dtype).astype(jnp.float32)
