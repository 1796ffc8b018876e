"""numpy implementation: the oracle of the other backends."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmcache_kit_kernels.tables.prototypes import symbol_costs

__all__ = ["fit"]

Array = np.ndarray[Any, np.dtype[Any]]


def fit(symbols: Array, levels: int) -> tuple[Array, Array]:
    """See :func:`lmcache_kit_kernels.tables.fit`."""
    count, tokens, channels = symbols.shape
    costs = symbol_costs(levels).astype(np.float32)
    values = np.arange(levels, dtype=np.int64)
    base = np.arange(channels, dtype=np.intp) * levels
    centres = np.empty((count, channels), dtype=np.uint8)
    tables = np.empty((count, channels), dtype=np.uint8)
    for block in range(count):
        index = (base + symbols[block]).reshape(-1)
        counts = np.bincount(index, minlength=channels * levels).reshape(channels, levels)
        middle = (2 * (counts @ values) + tokens) // (2 * tokens)
        rolled = np.take_along_axis(counts, (values + middle[:, None]) % levels, axis=1)
        # All sums are integers below 2**24: float32 is exact in whatever order they are added. einsum rather than a
        # BLAS product, whose threads wait for each other longer than this takes when the machine is busy.
        total = np.einsum("cu,tu->ct", rolled.astype(np.float32), costs)
        centres[block] = middle
        tables[block] = np.argmin(total, axis=1)
    return centres, tables
