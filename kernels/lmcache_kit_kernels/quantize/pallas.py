"""The Pallas kernels on the GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmcache_kit_kernels.quantize import pallas_kernels
from lmcache_kit_kernels.quantize.arguments import MAX_LEVELS, steps

__all__ = ["dequantize", "quantize"]

Array = np.ndarray[Any, np.dtype[Any]]


def quantize(blocks: Array, levels: Array, *, interpret: bool = False) -> tuple[Array, Array]:
    """See :func:`lmcache_kit_kernels.quantize.quantize`."""
    symbols, maxima = pallas_kernels.quantize(blocks, levels, interpret=interpret)
    return np.asarray(symbols), np.asarray(maxima)


def dequantize(symbols: Array, maxima: Array, levels: Array, *, interpret: bool = False) -> Array:
    """See :func:`lmcache_kit_kernels.quantize.dequantize`."""
    table = np.zeros((len(levels), MAX_LEVELS + 1), dtype=np.float32)
    for row, level in zip(table, levels, strict=True):
        row[:level] = steps(int(level))
    return np.asarray(pallas_kernels.dequantize(symbols, maxima, table, interpret=interpret))
