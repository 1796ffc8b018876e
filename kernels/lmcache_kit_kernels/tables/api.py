"""Choosing a table per channel, and moving symbols to and from the chosen centre."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmcache_kit_kernels.backends import implementation

__all__ = ["MAX_TOKENS", "centre", "fit", "uncentre"]

Array = np.ndarray[Any, np.dtype[Any]]

MAX_TOKENS = 1 << 15
"""Most tokens per channel whose cost sums are still exact in float32, on every backend."""


def fit(symbols: Array, levels: int, *, backend: str = "numpy") -> tuple[Array, Array]:
    """Centre and table of every channel.

    The centre is the channel's mean symbol, rounded half up; the table is the one under which the channel's centred
    symbols cost the fewest bits, the lower index on a tie. Integers decide both, so every backend chooses alike.

    Args:
        symbols: uint8 ``[B, T, C]`` below ``levels``, T from 1 to 32,768.
        levels: number of symbols.
        backend: ``numpy`` or ``xla``.

    Returns:
        centres uint8 ``[B, C]`` below ``levels`` and tables uint8 ``[B, C]`` below 32.
    """
    if symbols.ndim != 3 or symbols.dtype != np.uint8 or not 1 <= symbols.shape[1] <= MAX_TOKENS:
        raise ValueError(f"symbols must be uint8 [B, T, C] with 1 to {MAX_TOKENS} tokens, got {symbols.shape}")
    centres, tables = implementation("tables", backend).fit(symbols, levels)
    return centres, tables


def centre(symbols: Array, centres: Array, levels: int) -> Array:
    """``(symbol - centre) mod levels`` for symbols ``[B, T, C]`` and centres ``[B, C]``, uint8."""
    moved = symbols - centres[:, None, :]  # wraps below zero, where adding the levels wraps back
    moved += (moved >= levels).view(np.uint8) * np.uint8(levels)
    return moved


def uncentre(centred: Array, centres: Array, levels: int) -> Array:
    """Undo :func:`centre`."""
    moved = centred + centres[:, None, :]
    moved -= (moved >= levels).view(np.uint8) * np.uint8(levels)
    return moved
