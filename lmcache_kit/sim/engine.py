"""Engines in virtual time: when a prefill and the steps after it are done."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

from lmcache_kit.sim.costs import EngineCosts
from lmcache_kit.sim.devices import Queue
from lmcache_kit.sim.loop import VirtualLoop

__all__ = ["BatchedEngine", "SerialEngine", "SimEngine", "make_engine"]

Done = Callable[[], object]


class SimEngine(ABC):
    """One engine of one instance."""

    @abstractmethod
    def prefill(self, new: int, cached: int, done: Done) -> None:
        """``done`` is called when the first token is there."""

    @abstractmethod
    def copy(self, tokens: int, done: Done) -> None:
        """``done`` is called when the KV of so many tokens was taken out."""

    @abstractmethod
    def decode(self, steps: int, context: int, done: Done) -> None:
        """``done`` is called after so many steps of a sequence that begins with ``context`` tokens."""


class SerialEngine(SimEngine):
    """One thread that does everything in the order in which it was asked, one step of one sequence at a time."""

    def __init__(self, loop: VirtualLoop, costs: EngineCosts) -> None:
        self._loop = loop
        self._costs = costs
        self._thread = Queue()

    def _do(self, seconds: float, done: Done) -> None:
        self._loop.at(self._thread.take(self._loop.time(), seconds), done)

    def prefill(self, new: int, cached: int, done: Done) -> None:
        self._do(self._costs.prefill(new, cached), done)

    def copy(self, tokens: int, done: Done) -> None:
        self._do(tokens * self._costs.copy_token, done)

    def decode(self, steps: int, context: int, done: Done) -> None:
        def step(left: int, context: int) -> None:
            if left == 0:
                done()
            else:
                self._do(self._costs.step(1, context), lambda: step(left - 1, context + 1))

        step(steps, context)


class BatchedEngine(SimEngine):
    """Continuous batching: prefills one after another, and all sequences decode together while none is prefilled.

    Sequences advance in lockstep, so one number says how many steps were made since the start, and a sequence ends when
    that number has grown by its tokens: the work per request does not depend on its length. The context of a sequence
    counts as what it is half way.
    """

    def __init__(self, loop: VirtualLoop, costs: EngineCosts) -> None:
        self._loop = loop
        self._costs = costs
        self._prefills: deque[tuple[float, Done]] = deque()
        self._prefilling = False
        self._steps = 0.0
        self._since = 0.0
        self._ends: list[tuple[float, int, float, Done]] = []
        self._sequence = 0
        self._context = 0.0
        self._version = 0

    def prefill(self, new: int, cached: int, done: Done) -> None:
        self._prefills.append((self._costs.prefill(new, cached), done))
        if not self._prefilling:
            self._advance()
            self._next()

    def copy(self, tokens: int, done: Done) -> None:
        self._loop.after(tokens * self._costs.copy_token, done)

    def decode(self, steps: int, context: int, done: Done) -> None:
        if steps <= 0:
            done()
            return
        self._advance()
        self._sequence += 1
        middle = context + steps / 2
        self._context += middle
        heapq.heappush(self._ends, (self._steps + steps, self._sequence, middle, done))
        self._plan()

    def _next(self) -> None:
        """Begin the next prefill; decoding stands still meanwhile."""
        seconds, done = self._prefills.popleft()
        self._prefilling = True
        self._version += 1
        self._loop.after(seconds, self._prefilled, done)

    def _prefilled(self, done: Done) -> None:
        self._prefilling = False
        self._since = self._loop.time()
        done()
        if self._prefills and not self._prefilling:
            self._advance()
            self._next()
        elif not self._prefilling:
            self._plan()

    def _step(self) -> float:
        return max(self._costs.step(len(self._ends), self._context), 1e-12)

    def _advance(self) -> None:
        now = self._loop.time()
        if not self._prefilling and self._ends:
            self._steps += (now - self._since) / self._step()
        self._since = now

    def _plan(self) -> None:
        self._version += 1
        if self._ends and not self._prefilling:
            left = max(0.0, self._ends[0][0] - self._steps)
            self._loop.after(left * self._step(), self._due, self._version)

    def _due(self, version: int) -> None:
        if version != self._version:
            return
        self._advance()
        self._steps = max(self._steps, self._ends[0][0])
        finished = []
        while self._ends and self._ends[0][0] <= self._steps:
            _, _, middle, done = heapq.heappop(self._ends)
            self._context -= middle
            finished.append(done)
        if not self._ends:
            self._context = 0.0
        self._plan()
        for done in finished:
            done()


def make_engine(loop: VirtualLoop, costs: EngineCosts) -> SimEngine:
    """The engine that the costs describe."""
    return BatchedEngine(loop, costs) if costs.batched else SerialEngine(loop, costs)
