"""The check of a block: a weighted sum over its 16-bit words."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["weighted_sum", "word_sums"]

Array = np.ndarray[Any, np.dtype[Any]]

_AT_ONCE = 1 << 16
_WEIGHTS = np.arange(_AT_ONCE, dtype=np.uint32) * np.uint32(2) + np.uint32(1)


def weighted_sum(words: Array, first: int = 0, *, backend: str = "numpy") -> int:
    """Sum of ``w[i] * (2 * (first + i) + 1)`` mod ``2**32`` over ``words``, uint16 ``[n]``.

    The parts of a sum may be added in any order. Weights are odd, so any change of one word shows. Two flipped bits
    show unless they are the same bit b of words i and j and ``i - j`` or ``i + j + 1`` is a multiple of
    ``2**(31 - b)``, which is at least ``2**16``: always among the first ``2**15`` words. Two words that change in more
    than a bit can cancel out.
    """
    weighted, plain = word_sums(words, backend=backend)
    return (weighted + 2 * first * plain) % (1 << 32)


def word_sums(words: Array, *, backend: str = "numpy") -> tuple[int, int]:
    """``weighted_sum(words)`` and the plain sum of ``words``, both mod ``2**32``.

    Together they give the check of these words at any place: ``weighted + 2 * first * plain``. With backend ``numba``
    compiled loops sum, without the GIL; any other is numpy.
    """
    if backend == "numba":
        from lmcache_kit_kernels.blocks import numba_bytes

        return numba_bytes.word_sums(words)
    weighted = plain = 0
    products = np.empty(min(words.size, _AT_ONCE), np.uint32)
    for start in range(0, words.size, _AT_ONCE):
        part = words[start : start + _AT_ONCE]
        product = np.multiply(part, _WEIGHTS[: part.size], out=products[: part.size])
        # uint32 wraps, which is the modulus wanted.
        total = int(part.sum(dtype=np.uint32))
        weighted += int(product.sum(dtype=np.uint32)) + 2 * start * total
        plain += total
    return weighted % (1 << 32), plain % (1 << 32)
