"""Least absolute errors with coefficients that are never negative, for few features and noisy times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["fit", "nonnegative_least_squares"]

Array = npt.NDArray[np.float64]

_ROUNDS = 60
_LEAST_ERROR = 1e-3
_OWN_SHARE = 0.02
"""A feature must differ from all combinations of the others by this share of its length, or it tells nothing."""


def fit(
    features: Mapping[str, Sequence[float]], target: Sequence[float], weights: Sequence[float] | None = None
) -> dict[str, float]:
    """Coefficients of the features whose sum is nearest to ``target``; every one is at least 0.

    Nearest is the least sum of absolute errors, each times its weight: half of the samples may be disturbed as much as
    they like. A feature that is zero throughout, or follows from those named before it, is left out of the answer; so
    is every one when there are no more samples than features.
    """
    y = np.asarray(target, dtype=np.float64)
    w = np.ones_like(y) if weights is None else np.asarray(weights, dtype=np.float64)
    names: list[str] = []
    columns: list[Array] = []
    for name, values in features.items():
        column = np.asarray(values, dtype=np.float64) * w
        if len(columns) + 1 < len(y) and _adds(column, columns):
            names.append(name)
            columns.append(column)
    if not columns:
        return {}
    matrix = np.stack(columns, axis=1)
    # All columns at one scale, for what is a token's seconds and what is a request's differ by orders of magnitude.
    scale = np.linalg.norm(matrix, axis=0)
    found = _least_absolute(matrix / scale, y * w) / scale
    return dict(zip(names, found.tolist(), strict=True))


def _adds(column: Array, before: Sequence[Array]) -> bool:
    length = float(np.linalg.norm(column))
    if length == 0.0:
        return False
    if not before:
        return True
    others = np.stack([each / np.linalg.norm(each) for each in before], axis=1)
    rest = column - others @ np.linalg.lstsq(others, column, rcond=None)[0]
    return float(np.linalg.norm(rest)) > _OWN_SHARE * length


def _least_absolute(matrix: Array, target: Array) -> Array:
    """By least squares again and again, each sample weighed by what it was missed by the last time."""
    found = nonnegative_least_squares(matrix, target)
    least = _LEAST_ERROR * max(float(np.median(np.abs(target))), 1e-30)
    for _ in range(_ROUNDS):
        root = 1.0 / np.sqrt(np.maximum(np.abs(matrix @ found - target), least))
        better = nonnegative_least_squares(matrix * root[:, None], target * root)
        settled = np.allclose(better, found, rtol=1e-6, atol=0.0)
        found = better
        if settled:
            break
    return found


def nonnegative_least_squares(matrix: Array, target: Array) -> Array:
    """The ``x >= 0`` with the least ``|matrix @ x - target|`` (Lawson and Hanson 1974, chapter 23)."""
    count = matrix.shape[1]
    x = np.zeros(count)
    free = np.zeros(count, dtype=bool)
    tolerance = 1e-12 * max(float(np.abs(matrix.T @ target).max(initial=0.0)), 1e-300)
    for _ in range(10 * count):
        slope = matrix.T @ (target - matrix @ x)
        slope[free] = -np.inf
        best = int(np.argmax(slope))
        if slope[best] <= tolerance:
            break
        free[best] = True
        while True:
            trial = np.zeros(count)
            trial[free] = np.linalg.lstsq(matrix[:, free], target, rcond=None)[0]
            negative = free & (trial <= 0.0)
            if not negative.any():
                x = trial
                break
            # As far towards the trial as all stay positive; what reaches zero is fixed there.
            step = float(np.min(x[negative] / np.maximum(x[negative] - trial[negative], 1e-300)))
            x = x + step * (trial - x)
            free &= x > 1e-15
            x[~free] = 0.0
    return x
