"""numpy implementation: the oracle of the other backends."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from lmcache_kit_kernels.quantize.reference import widen
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
    bfloat16_value,
)

__all__ = ["dequantize", "quantize"]

Array = np.ndarray[Any, np.dtype[Any]]

_GAIN_UNIT = np.float32(1 / 256)


def quantize(
    blocks: Array, ratio: int, log_variances: Array | None, refined: int, bits: int
) -> tuple[Array, Array, Array, Array, Array | None, Array]:
    """See :func:`lmcache_kit_kernels.uniform.quantize`; returns the fields of ``Uniform``."""
    count, tokens, channels = blocks.shape
    exponents = np.zeros((count, tokens), np.uint8)
    inverses = np.full(count, ONE, np.uint16)
    offsets = np.zeros((count, channels), np.int16)
    symbols = np.zeros(blocks.shape, np.uint8)
    refinements = np.zeros((count, refined, channels), np.uint8)
    usable = np.zeros(count, bool)
    for block in range(count):
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            parts = _quantize(blocks[block], ratio, None if log_variances is None else int(log_variances[block]))
        if parts is None:
            refinements[block] = 1 << bits >> 1
            continue
        usable[block] = True
        exponents[block], inverses[block], offsets[block], scaled, rounded = parts
        symbols[block] = np.where(rounded < 0, rounded + LEVELS, rounded)
        rest = (scaled[:refined] - rounded[:refined] + np.float32(0.5)) * np.float32(1 << bits)
        refinements[block] = np.clip(np.floor(rest), 0, (1 << bits) - 1)
    return exponents, inverses, offsets, symbols, refinements if refined else None, usable


def _quantize(block: Array, ratio: int, log_variance: int | None) -> tuple[Array, int, Array, Array, Array] | None:
    """Exponents, inverse, offsets, scaled values and their roundings, or None if the block is not usable."""
    tokens = block.shape[0]
    values = widen(block)
    first, second = _sums(values if block.dtype != np.float32 else widen(block.astype(ml_dtypes.bfloat16)))
    share = np.float32(1) / np.float32(tokens)
    mean = first * share
    squares = _flush(mean * mean)
    variances = _flush(np.maximum(_flush(second * share) - squares, np.float32(0)))
    if not all(np.isfinite(array).all() for array in (first, second, variances)):
        return None
    largest = np.abs(values).max()
    if largest == 0:
        inverse_bits = ONE
    else:
        measured = _log_variance(variances, squares) if log_variance is None else log_variance
        inverse_bits = ratio + HALVING - (measured >> 1)
    if not (largest == 0 or largest >= SMALLEST_LARGEST) or not MIN_INVERSE <= inverse_bits <= MAX_INVERSE:
        return None
    inverse = bfloat16_value(np.array(inverse_bits, np.uint16))
    offsets = np.rint(mean * inverse)
    if np.abs(offsets).max() > MAX_OFFSET:
        return None
    moved = values * inverse - offsets
    far = np.abs(moved).max(axis=1)
    # rint(63.5) is 64, so a magnitude of 63.5 is already too far.
    exponents = np.searchsorted(np.exp2(np.arange(MAX_EXPONENT + 1)) * (MIDDLE + 0.5), far, side="right")
    if exponents.max() > MAX_EXPONENT:
        return None
    scaled = moved * np.exp2(-exponents.astype(np.float32))[:, None]
    return exponents.astype(np.uint8), inverse_bits, offsets.astype(np.int16), scaled, np.rint(scaled)


def _sums(values: Array) -> tuple[Array, Array]:
    """Sums of values and squares over tokens, one token after another."""
    values = np.where(np.abs(values) < np.float32(NEGLIGIBLE), np.float32(0), values)
    first, second = np.zeros(values.shape[1], np.float32), np.zeros(values.shape[1], np.float32)
    for row in values:
        first += row
        second += row * row
    return first, second


def _flush(values: Array) -> Array:
    return np.where(np.abs(values) < np.float32(MIN_NORMAL), np.float32(0), values)


def _log_variance(variances: Array, squares: Array) -> int:
    logs = variances.view(np.uint32) >> np.uint32(16)
    floor = max(int(logs.max()) - VARIANCE_DEPTH, int(squares.view(np.uint32).max() >> 16) - MEAN_DEPTH, 0)
    return int(np.maximum(logs, floor).sum(dtype=np.int64)) // logs.size


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
    blocks = np.empty(symbols.shape, dtype)
    steps = np.float32(1) / bfloat16_value(inverses)
    for block in range(len(blocks)):
        signed = symbols[block].astype(np.float32)
        signed -= (symbols[block] > MIDDLE).astype(np.float32) * np.float32(LEVELS)
        units = signed * (gains[block].astype(np.float32) * _GAIN_UNIT)
        if refinements is not None:
            refined = slice(refinements.shape[1])
            inside = (refinements[block].astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-bits) - np.float32(
                0.5
            )
            units[refined] = signed[refined] + inside
        units *= np.exp2(exponents[block].astype(np.float32))[:, None]
        units += offsets[block].astype(np.float32)
        with np.errstate(over="ignore"):
            blocks[block] = (units * steps[block]).astype(dtype)
    return blocks
