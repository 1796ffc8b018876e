"""Constants of the uniform quantizer, and the checks of what comes from outside."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from lmcache_kit_kernels.errors import CorruptStreamError

__all__ = [
    "HALVING",
    "LEVELS",
    "MAX_CHANNELS",
    "MAX_EXPONENT",
    "MAX_INVERSE",
    "MAX_OFFSET",
    "MEAN_DEPTH",
    "MIDDLE",
    "MIN_INVERSE",
    "MIN_NORMAL",
    "NEGLIGIBLE",
    "ONE",
    "REFINE_BITS",
    "SMALLEST_LARGEST",
    "VARIANCE_DEPTH",
    "bfloat16_value",
    "check_refinement",
    "check_scales",
]

Array = np.ndarray[Any, np.dtype[Any]]

LEVELS, MIDDLE = 127, 63
MAX_EXPONENT = 16
"""A token's step is at most 2**16 steps of its block."""
MAX_OFFSET = 32767
MAX_CHANNELS = 1 << 17
"""Patterns of float32, at most 32,640 each, still sum to less than 2**32."""
REFINE_BITS = (1, 2, 4)

NEGLIGIBLE = 2.0**-60
"""Values below it count as zero in the sums, so that no square is denormal."""
SMALLEST_LARGEST = 2.0**-50
"""Smallest non-zero largest magnitude of a block."""
MIN_NORMAL = 2.0**-126
"""Float32 results of the statistics below it count as zero: devices differ in whether they flush denormals."""

ONE = 0x3F80
"""The bfloat16 pattern of 1."""
HALVING = 8128
"""Half the pattern of 1: the pattern of a square root is about half the pattern, plus this."""
VARIANCE_DEPTH, MEAN_DEPTH = 16 * 128, 18 * 128
"""How far a channel's log variance may lie below the largest one, and below the largest squared mean, before it counts
as that: a constant channel must not pull the step of its block to zero. 128 is one power of two."""


def _pattern(value: float) -> int:
    return int(np.array(value, ml_dtypes.bfloat16).view(np.uint16))


MIN_INVERSE, MAX_INVERSE = _pattern(2.0**-100), _pattern(2.0**100)


def bfloat16_value(patterns: Array) -> Array:
    """float32 of bfloat16 patterns, uint16 of any shape."""
    return (patterns.astype(np.uint32) << np.uint32(16)).view(np.float32)


def check_refinement(tokens: int, bits: int) -> None:
    """Raises ValueError unless tokens and bits are both zero or both make sense."""
    if tokens < 0 or (tokens > 0 and bits not in REFINE_BITS) or (tokens == 0 and bits != 0):
        raise ValueError(f"refinement takes tokens and 1, 2 or 4 bits, or neither; got {tokens} and {bits}")


def check_scales(exponents: Array, inverses: Array) -> None:
    """Raises CorruptStreamError for exponents or inverse steps that no encoder writes."""
    if exponents.size and int(exponents.max()) > MAX_EXPONENT:
        raise CorruptStreamError(f"a token's exponent is {int(exponents.max())}, it is at most {MAX_EXPONENT}")
    if np.any((inverses < MIN_INVERSE) | (inverses > MAX_INVERSE)):
        raise CorruptStreamError("an inverse step is out of range")
