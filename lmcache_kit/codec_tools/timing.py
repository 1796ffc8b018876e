"""Seconds of calls."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["LEAST_CALLS", "median_seconds", "timed"]

T = TypeVar("T")

LEAST_CALLS = 3


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds of one call, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def median_seconds(work: Callable[[], object], seconds: float) -> float:
    """The median of calls made for about ``seconds``, and of three at least. The caller has warmed up."""
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) < LEAST_CALLS or time.perf_counter() - begin < seconds:
        taken.append(timed(work)[0])
    return statistics.median(taken)
