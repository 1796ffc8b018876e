"""How far decoded KV is from what was encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lmcache_kit.kv.layout import KVTensor

__all__ = ["Difference", "difference"]

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Difference:
    """Of one KV from another.

    Args:
        nmse: sum of squared errors over sum of squared values, both over the elements that are finite in both; None
            when all of those values are zero and some errors are not.
        max_abs_error: the largest error among those elements.
        non_finite_mismatches: elements that are infinite or NaN in one and not the same in the other.
    """

    nmse: float | None
    max_abs_error: float
    non_finite_mismatches: int


def difference(exact: KVTensor, decoded: KVTensor) -> Difference:
    """How far ``decoded`` is from ``exact``, of the same shape. The arithmetic is float64, layer after layer."""
    energy = squared = largest = 0.0
    mismatches = 0
    for before, after in zip(exact.data, decoded.data, strict=True):
        x, y = _float64(before), _float64(after)
        both = np.isfinite(x) & np.isfinite(y)
        if not both.all():
            same = both | (x == y) | (np.isnan(x) & np.isnan(y))
            mismatches += int(np.count_nonzero(~same))
            x, y = x[both], y[both]
        error = y - x
        energy += float(np.square(x).sum())
        squared += float(np.square(error).sum())
        largest = max(largest, float(np.abs(error).max(initial=0.0)))
    nmse = squared / energy if energy else (0.0 if squared == 0 else None)
    return Difference(nmse, largest, mismatches)


def _float64(values: Array) -> Array:
    # A signalling NaN is no reason to warn: it is counted.
    with np.errstate(invalid="ignore"):
        return values.astype(np.float64)
