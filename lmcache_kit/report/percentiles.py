"""Percentiles of measured values, by linear interpolation as numpy's default."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["PERCENTILES", "percentile", "summarize"]

PERCENTILES = (50, 90, 99)


def percentile(values: Sequence[float], percent: float) -> float:
    """The ``percent``-th percentile (0 to 100) of at least one value."""
    if not values:
        raise ValueError("no values have no percentile")
    if not 0 <= percent <= 100:
        raise ValueError(f"{percent} is not between 0 and 100")
    return _interpolate(sorted(values), percent)


def summarize(values: Sequence[float]) -> dict[str, float] | None:
    """``mean``, ``min``, ``p50``, ``p90``, ``p99`` and ``max``; None of no values."""
    if not values:
        return None
    ordered = sorted(values)
    return {
        "mean": math.fsum(ordered) / len(ordered),
        "min": ordered[0],
        **{f"p{percent}": _interpolate(ordered, percent) for percent in PERCENTILES},
        "max": ordered[-1],
    }


def _interpolate(ordered: Sequence[float], percent: float) -> float:
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
