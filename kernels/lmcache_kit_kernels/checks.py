"""The check of a block: a weighted sum over its 16-bit words."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["weighted_sum"]

Array = np.ndarray[Any, np.dtype[Any]]

_AT_ONCE = 1 << 16
_WEIGHTS = np.arange(_AT_ONCE, dtype=np.uint32) * np.uint32(2) + np.uint32(1)


def weighted_sum(words: Array, first: int = 0) -> int:
    """Sum of ``w[i] * (2 * (first + i) + 1)`` mod ``2**32`` over ``words``, uint16 ``[n]``.

    The parts of a sum may be added in any order. Odd weights make every change of one word show, and so does every
    change of two words less than ``2**16`` apart.
    """
    total = 0
    products = np.empty(min(words.size, _AT_ONCE), np.uint32)
    for start in range(0, words.size, _AT_ONCE):
        part = words[start : start + _AT_ONCE]
        weighted = np.multiply(part, _WEIGHTS[: part.size], out=products[: part.size])
        # uint32 wraps, which is the modulus wanted.
        total += int(weighted.sum(dtype=np.uint32)) + 2 * (first + start) * int(part.sum(dtype=np.uint32))
    return total % (1 << 32)
