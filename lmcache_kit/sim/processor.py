"""The cores of one machine that all of a fleet's processes share."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

from lmcache_kit.sim.loop import VirtualLoop

__all__ = ["Processor"]


class Processor:
    """Work that wants more cores than there are takes longer, all of it by the same factor (processor sharing).

    How far a piece of work that wants one core has come is the same number for all that are under way: it grows by a
    second in a second while there are cores enough, and slower by their lack. So what is done next is the top of a
    heap, and a begin or an end costs the logarithm of how many there are.

    Args:
        loop: virtual time.
        cores: how many there are; need not be a whole number.
    """

    def __init__(self, loop: VirtualLoop, cores: float) -> None:
        self._loop = loop
        self._cores = cores
        self._wanted = 0.0
        self._progress = 0.0
        self._since = 0.0
        self._ends: list[tuple[float, int, float, Callable[..., object], tuple[Any, ...]]] = []
        self._sequence = 0
        self._version = 0

    def run(self, seconds: float, call: Callable[..., object], *args: Any, cores: float = 1.0) -> None:
        """Call once work is done that takes so many seconds on ``cores`` cores of its own."""
        if seconds <= 0.0:
            self._loop.after(0.0, call, *args)
            return
        self._advance()
        self._sequence += 1
        self._wanted += cores
        heapq.heappush(self._ends, (self._progress + seconds, self._sequence, cores, call, args))
        self._plan()

    def run_at(self, when: float, seconds: float, call: Callable[..., object], *args: Any, cores: float = 1.0) -> None:
        """As :meth:`run`, from a time on that has not passed."""
        self._loop.at(when, lambda: self.run(seconds, call, *args, cores=cores))

    def _rate(self) -> float:
        return min(1.0, self._cores / self._wanted)

    def _advance(self) -> None:
        now = self._loop.time()
        if self._ends:
            self._progress += (now - self._since) * self._rate()
        self._since = now

    def _plan(self) -> None:
        self._version += 1
        if self._ends:
            left = max(0.0, self._ends[0][0] - self._progress)
            self._loop.after(left / self._rate(), self._due, self._version)

    def _due(self, version: int) -> None:
        if version != self._version:
            return
        self._advance()
        self._progress = max(self._progress, self._ends[0][0])
        finished = []
        while self._ends and self._ends[0][0] <= self._progress:
            _, _, cores, call, args = heapq.heappop(self._ends)
            self._wanted -= cores
            finished.append((call, args))
        if not self._ends:
            self._wanted = 0.0  # no rest of roundings
        self._plan()
        for call, args in finished:
            call(*args)
