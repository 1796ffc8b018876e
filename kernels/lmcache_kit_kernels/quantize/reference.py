"""numpy implementation: the oracle of the other backends."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from lmcache_kit_kernels.quantize.arguments import in_domain, steps

__all__ = ["dequantize", "quantize", "widen"]

Array = np.ndarray[Any, np.dtype[Any]]

# Elements worked on at once: the float32 temporaries stay in the second-level cache.
_AT_ONCE = 1 << 17


def quantize(blocks: Array, levels: Array) -> tuple[Array, Array]:
    """See :func:`lmcache_kit_kernels.quantize.quantize`."""
    count, tokens, channels = blocks.shape
    symbols = np.empty(blocks.shape, dtype=np.uint8)
    maxima = np.empty((count, tokens), dtype=blocks.dtype)
    rows = max(1, _AT_ONCE // channels)
    for block in range(count):
        for start in range(0, tokens, rows):
            part = slice(start, start + rows)
            maxima[block, part] = _rows(blocks[block, part], int(levels[block]) // 2, symbols[block, part])
    return symbols, maxima


def _rows(values: Array, middle: int, symbols: Array) -> Array:
    """Fill ``symbols`` from ``values`` (both ``[rows, C]``); return the rows' maxima."""
    maxima = _maxima(values)
    wide = widen(values)
    usable = in_domain(maxima)
    if not usable.all():
        wide = np.where(usable[:, None], wide, np.float32(0))
    maximum = maxima.astype(np.float32)
    nonzero = usable & (maximum > 0)
    factor = np.zeros_like(maximum)
    np.divide(np.float32(middle), maximum, out=factor, where=nonzero)
    scaled = wide * factor[:, None]
    scaled += np.float32(middle)
    np.rint(scaled, out=scaled)
    np.copyto(symbols, scaled, casting="unsafe")
    return maxima


def _maxima(values: Array) -> Array:
    # The bit pattern of a non-negative float orders as the float does, and NaN above all: the integer maximum is
    # exact, carries NaN, and costs half of converting first.
    unsigned = np.dtype(f"u{values.dtype.itemsize}")
    mask = unsigned.type((1 << (8 * unsigned.itemsize - 1)) - 1)
    maxima: Array = (values.view(unsigned) & mask).max(axis=1).view(values.dtype)
    return maxima


def widen(values: Array) -> Array:
    """float32 of bfloat16, float16 or float32, exactly."""
    if values.dtype == ml_dtypes.bfloat16:
        return (values.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32)


def dequantize(symbols: Array, maxima: Array, levels: Array) -> Array:
    """See :func:`lmcache_kit_kernels.quantize.dequantize`."""
    blocks = np.empty(symbols.shape, dtype=maxima.dtype)
    count, tokens, channels = symbols.shape
    for block in range(count):
        table = steps(int(levels[block]))
        # A token takes at most `levels` different values: round those, then look them up.
        with np.errstate(invalid="ignore", over="ignore"):
            values = (table[None, :] * maxima[block].astype(np.float32)[:, None]).astype(maxima.dtype)
        flat = values.reshape(-1)
        rows = max(1, _AT_ONCE // channels)
        base = (np.arange(tokens, dtype=np.intp) * table.size)[:, None]
        for start in range(0, tokens, rows):
            part = slice(start, start + rows)
            np.take(flat, base[part] + symbols[block, part], out=blocks[block, part], mode="clip")
    return blocks
