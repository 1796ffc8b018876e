"""Engines in virtual time: when a prefill and the steps after it are done."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

from lmcache_kit.sim.costs import EngineCosts
from lmcache_kit.sim.devices import Queue
from lmcache_kit.sim.loop import VirtualLoop
from lmcache_kit.sim.processor import Processor

__all__ = ["BatchedEngine", "SerialEngine", "SimEngine", "make_engine"]

Done = Callable[[], object]


class SimEngine(ABC):
    """One engine of one instance.

    Args:
        loop: virtual time.
        costs: of its steps.
        block: tokens that it computes in one pass.
        processor: what it computes on, with others; None for one of its own.
    """

    def __init__(self, loop: VirtualLoop, costs: EngineCosts, block: int, processor: Processor | None = None) -> None:
        self._loop = loop
        self._costs = costs
        self._block = block
        self._processor = processor

    def fresh(self) -> SimEngine:
        """One like it that has nothing to do."""
        return type(self)(self._loop, self._costs, self._block, self._processor)

    def work(self, new: int, cached: int, copied: int) -> tuple[float, float, float]:
        """Seconds of starting, prefilling and copying, without waiting."""
        costs = self._costs
        return costs.start(cached), costs.prefill(new, cached, self._block), costs.copy(copied)

    @abstractmethod
    def tokenize(self, tokens: int, done: Done) -> None:
        """``done`` is called when a text has been made into so many tokens."""

    @abstractmethod
    def prefill(self, new: int, cached: int, done: Done) -> None:
        """``done`` is called when the first token is there."""

    @abstractmethod
    def show(self, done: Done) -> None:
        """``done`` is called when the first token can be sent off."""

    @abstractmethod
    def go_on(self, tokens: int, copied: Done, steps: int, context: int, done: Callable[[float], object]) -> None:
        """What follows the first token. ``copied`` is called when the KV of so many tokens was taken out, and ``done``
        after so many steps of a sequence that begins with ``context`` tokens, with the seconds that its own steps took.
        """


class SerialEngine(SimEngine):
    """One thread that does everything in the order in which it was asked, one step of one sequence at a time.

    A request asks for its next step when it has heard of the end of the last one, as this project's instances do: what
    others asked for in between comes first.
    """

    def __init__(self, loop: VirtualLoop, costs: EngineCosts, block: int, processor: Processor | None = None) -> None:
        super().__init__(loop, costs, block, processor)
        self._thread = Queue()
        self._waiting: deque[tuple[float, Done]] = deque()
        self._busy = False

    def _do(self, seconds: float, done: Done) -> None:
        if self._processor is None:
            self._loop.at(self._thread.take(self._loop.time(), seconds) + self._costs.handoff, done)
        elif self._busy:
            self._waiting.append((seconds, done))
        else:
            self._busy = True
            self._processor.run(seconds, self._ended, done)

    def _ended(self, done: Done) -> None:
        """On a shared processor nobody knows before when a step will have ended."""
        assert self._processor is not None
        self._loop.after(self._costs.handoff, done)
        if self._waiting:
            seconds, following = self._waiting.popleft()
            self._processor.run(seconds, self._ended, following)
        else:
            self._busy = False

    def tokenize(self, tokens: int, done: Done) -> None:
        self._do(tokens * self._costs.tokenize_token, done)

    def prefill(self, new: int, cached: int, done: Done) -> None:
        start, seconds, _ = self.work(new, cached, 0)
        self._do(start, lambda: self._do(seconds, done))

    def show(self, done: Done) -> None:
        self._do(0.0, done)

    def go_on(self, tokens: int, copied: Done, steps: int, context: int, done: Callable[[float], object]) -> None:
        total = 0.0

        def taken_out() -> None:
            copied()
            step(steps, context)

        def step(left: int, context: int) -> None:
            nonlocal total
            if left == 0:
                done(total)
            else:
                seconds = self._costs.step(1, context)
                total += seconds
                self._do(seconds, lambda: step(left - 1, context + 1))

        self._do(self._costs.copy(tokens), taken_out)


class BatchedEngine(SimEngine):
    """Continuous batching: prefills one after another, and all sequences decode together while none is prefilled.

    Sequences advance in lockstep, so one number says how many steps were made since the start, and a sequence ends when
    that number has grown by its tokens: the work per request does not depend on its length. The context of a sequence
    counts as what it is half way. It computes on an accelerator, which it shares with nobody.
    """

    def __init__(self, loop: VirtualLoop, costs: EngineCosts, block: int, processor: Processor | None = None) -> None:
        super().__init__(loop, costs, block, processor)
        self._prefills: deque[tuple[float, Done]] = deque()
        self._prefilling = False
        self._steps = 0.0
        self._since = 0.0
        self._ends: list[tuple[float, int, float, float, Callable[[float], object]]] = []
        self._sequence = 0
        self._context = 0.0
        self._version = 0

    def tokenize(self, tokens: int, done: Done) -> None:
        self._loop.after(tokens * self._costs.tokenize_token, done)

    def prefill(self, new: int, cached: int, done: Done) -> None:
        start, seconds, _ = self.work(new, cached, 0)
        self._prefills.append((start + seconds, done))
        if not self._prefilling:
            self._advance()
            self._next()

    def show(self, done: Done) -> None:
        done()

    def go_on(self, tokens: int, copied: Done, steps: int, context: int, done: Callable[[float], object]) -> None:
        self._loop.after(self._costs.copy(tokens), copied)
        if steps <= 0:
            done(0.0)
            return
        self._advance()
        self._sequence += 1
        middle = context + steps / 2
        self._context += middle
        heapq.heappush(self._ends, (self._steps + steps, self._sequence, middle, self._loop.time(), done))
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
            _, _, middle, began, done = heapq.heappop(self._ends)
            self._context -= middle
            finished.append((began, done))
        if not self._ends:
            self._context = 0.0
        self._plan()
        now = self._loop.time()
        for began, done in finished:
            done(now - began)


def make_engine(loop: VirtualLoop, costs: EngineCosts, block: int, processor: Processor | None = None) -> SimEngine:
    """The engine that the costs describe; it prefills in blocks of ``block`` tokens."""
    kind = BatchedEngine if costs.batched else SerialEngine
    return kind(loop, costs, block, processor)
