"""What both directions of the quantizer accept, and the tables they share.

A block is the ``[T, C]`` matrix of one (layer, plane): T tokens of C channels. ``levels`` is the number of symbols of a
block, odd, so that zero has a symbol of its own: ``middle = levels // 2``.
"""

from __future__ import annotations

import functools
from typing import Any

import ml_dtypes
import numpy as np

__all__ = ["DTYPES", "MAX_LEVELS", "MIN_LEVELS", "TINY", "check_blocks", "check_levels", "in_domain", "steps"]

Array = np.ndarray[Any, np.dtype[Any]]

MIN_LEVELS, MAX_LEVELS = 15, 127
DTYPES = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32))

TINY = 2.0**-100
"""Smallest non-zero maximum that the quantizer takes. Devices differ in whether they flush denormal float32 to zero;
above this bound neither the scaled values nor the reconstruction come near one."""


def check_blocks(blocks: Array) -> None:
    """Raises ValueError unless ``blocks`` is ``[B, T, C]`` of a supported dtype."""
    if blocks.ndim != 3 or blocks.dtype not in DTYPES:
        raise ValueError(f"blocks must be [B, T, C] of bfloat16, float16 or float32, got {blocks.dtype} {blocks.shape}")


def check_levels(levels: Array, blocks: int) -> Array:
    """``levels`` as int32 ``[B]``. Raises ValueError unless there is one odd number in range per block."""
    levels = np.asarray(levels, dtype=np.int32)
    good = levels.shape == (blocks,) and bool(
        np.all((levels % 2 == 1) & (levels >= MIN_LEVELS) & (levels <= MAX_LEVELS))
    )
    if not good:
        raise ValueError(f"levels must be {blocks} odd numbers from {MIN_LEVELS} to {MAX_LEVELS}, got {levels}")
    return levels


def in_domain(maxima: Array) -> Array:
    """Which token maxima the quantizer can represent: zero, or finite and at least :data:`TINY`."""
    wide = maxima.astype(np.float32)
    inside: Array = (wide == 0) | ((wide >= TINY) & (wide < np.inf))
    return inside


@functools.cache
def steps(levels: int) -> Array:
    """float32 ``[levels]``: what a symbol stands for when the maximum is 1, ``(symbol - middle) / middle``."""
    middle = levels // 2
    table = (np.arange(levels, dtype=np.float32) - np.float32(middle)) / np.float32(middle)
    table.setflags(write=False)
    return table
