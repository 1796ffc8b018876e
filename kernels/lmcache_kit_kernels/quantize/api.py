"""Quantize and dequantize, on any backend.

The arithmetic is that of LMCache's cachegen, each operation rounded to float32 in this order::

    maximum[t] = max over c of |x[t, c]|                      exact, in the input's dtype
    factor[t]  = middle / maximum[t]
    symbol     = round_half_even((x[t, c] * factor[t]) + middle)
    value      = ((symbol - middle) / middle) * maximum[t]    then rounded to the dtype

A token whose maximum is zero has ``middle`` everywhere and comes back as zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lmcache_kit_kernels.backends import implementation
from lmcache_kit_kernels.quantize.arguments import DTYPES, check_blocks, check_levels, in_domain

__all__ = ["dequantize", "quantize", "representable"]

Array = np.ndarray[Any, np.dtype[Any]]


def quantize(blocks: Array, levels: Array, *, backend: str = "numpy") -> tuple[Array, Array]:
    """Symbols and token maxima of blocks.

    Args:
        blocks: ``[B, T, C]``, bfloat16, float16 or float32.
        levels: ``[B]``, symbols of each block: odd, 15 to 127.
        backend: one of ``backends_of("quantize")``; all agree bit for bit.

    Returns:
        symbols uint8 ``[B, T, C]`` below ``levels``, and maxima ``[B, T]`` in the input's dtype. A token outside the
        quantizer's domain (see :func:`representable`) gets ``middle`` everywhere.
    """
    check_blocks(blocks)
    levels = check_levels(levels, blocks.shape[0])
    if blocks.size == 0:
        return np.zeros(blocks.shape, np.uint8), np.zeros(blocks.shape[:2], blocks.dtype)
    symbols, maxima = implementation("quantize", backend).quantize(blocks, levels)
    return symbols, maxima


def dequantize(symbols: Array, maxima: Array, levels: Array, *, backend: str = "numpy") -> Array:
    """Blocks ``[B, T, C]`` in the dtype of ``maxima`` from what :func:`quantize` returned.

    Args:
        symbols: uint8 ``[B, T, C]``, each below its block's levels; the caller vouches for that.
        maxima: ``[B, T]``. Tokens outside the quantizer's domain give unspecified values.
        levels: ``[B]``.
        backend: as in :func:`quantize`.
    """
    if symbols.ndim != 3 or symbols.dtype != np.uint8 or maxima.shape != symbols.shape[:2]:
        raise ValueError(f"symbols must be uint8 [B, T, C] and maxima [B, T], got {symbols.shape} and {maxima.shape}")
    if maxima.dtype not in DTYPES:
        raise ValueError(f"maxima must be bfloat16, float16 or float32, not {maxima.dtype}")
    levels = check_levels(levels, symbols.shape[0])
    if symbols.size == 0:
        return np.zeros(symbols.shape, maxima.dtype)
    blocks: Array = implementation("quantize", backend).dequantize(symbols, maxima, levels)
    return blocks


def representable(maxima: Array) -> Array:
    """bool ``[B]``: whether every token of a block is in the quantizer's domain.

    Out of it are tokens with an infinity or NaN, and tokens whose maximum is non-zero but below 2**-100.
    """
    whole: Array = np.all(in_domain(maxima), axis=1)
    return whole
