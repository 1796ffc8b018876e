"""Counts of the scheduler side, from several threads, until vLLM collects them."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

__all__ = ["Tallies"]


class Tallies:
    """Sums and lists of times since they were last taken."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._times: dict[str, list[float]] = {}

    def add(self, name: str, number: int) -> None:
        """Raise a count."""
        if number:
            with self._lock:
                self._counts[name] += number

    def time(self, name: str, seconds: float) -> None:
        """Note a time."""
        with self._lock:
            self._times.setdefault(name, []).append(seconds)

    def take(self) -> dict[str, Any]:
        """``{"counts": {name: number}, "times": {name: [seconds]}}``, and begin anew; empty when nothing was noted."""
        with self._lock:
            counts, self._counts = dict(self._counts), Counter()
            times, self._times = self._times, {}
        return {"counts": counts, "times": times} if counts or times else {}
