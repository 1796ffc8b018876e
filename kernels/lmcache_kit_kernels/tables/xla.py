"""XLA implementation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmcache_kit_kernels.tables.prototypes import symbol_costs

__all__ = ["fit"]

Array = np.ndarray[Any, np.dtype[Any]]


@jax.jit
def _fit(symbols: jax.Array, costs: jax.Array) -> tuple[jax.Array, jax.Array]:
    levels = costs.shape[1]
    tokens = symbols.shape[1]
    # One pass over the symbols per level, which XLA fuses into sums; a scatter-add would be serial.
    counts = jnp.stack([jnp.sum(symbols == level, axis=1, dtype=jnp.int32) for level in range(levels)], axis=-1)
    values = jnp.arange(levels, dtype=jnp.int32)
    middle = (2 * jnp.sum(counts * values, axis=-1) + tokens) // (2 * tokens)
    rolled = jnp.take_along_axis(counts, (values + middle[..., None]) % levels, axis=-1)
    # Sums of integers below 2**24, exact in float32 in any order; "highest" forbids shorter floats.
    total = jnp.matmul(rolled.astype(jnp.float32), costs.T, precision="highest")
    return middle.astype(jnp.uint8), jnp.argmin(total, axis=-1).astype(jnp.uint8)


def fit(symbols: Array, levels: int) -> tuple[Array, Array]:
    """See :func:`lmcache_kit_kernels.tables.fit`."""
    centres, tables = _fit(symbols, symbol_costs(levels).astype(np.float32))
    return np.asarray(centres), np.asarray(tables)
