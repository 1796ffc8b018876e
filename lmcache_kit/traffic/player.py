"""Plays a source: every request is made when its time has come, and given to the dispatcher."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from lmcache_kit.clock import Clock
from lmcache_kit.contracts.trace import TraceRecord
from lmcache_kit.traffic.dispatch import Dispatcher
from lmcache_kit.traffic.request import Request
from lmcache_kit.traffic.source import Source

__all__ = ["Player"]

# Arrivals at one time are sent off in groups, so that answers are read in between.
_AT_ONCE = 64


class Player:
    """Plays one source to its end.

    Args:
        source: the requests.
        clock: the run's clock.
        time_scale: how many seconds of the source pass in one second; thinking included.
        max_output_tokens: cap on each request's output; None for none.
    """

    def __init__(
        self, source: Source, *, clock: Clock, time_scale: float = 1.0, max_output_tokens: int | None = None
    ) -> None:
        self._source = source
        self._clock = clock
        self._time_scale = time_scale
        self._cap = max_output_tokens
        self._submit: Callable[[Request], None] = _nowhere
        self._turns = Counter[str]()
        self._seen: set[str] = set()
        self._count = 0
        self._open = 0
        self._exhausted = False
        self._finished = asyncio.Event()
        self._start = 0.0
        self.most_late = 0.0
        """Seconds that the latest request was made after its time: how far the player fell behind."""

    async def play(self, dispatcher: Dispatcher, *, start: float) -> None:
        """Play to the end of the last request; ``start`` is the clock's reading at arrival 0.

        What the dispatcher fails with is raised.
        """
        self._submit = dispatcher.submit
        self._start = start
        work = asyncio.ensure_future(self._work())
        try:
            await asyncio.wait({work, dispatcher.failure}, return_when=asyncio.FIRST_COMPLETED)
            if dispatcher.failure.done():
                dispatcher.failure.result()
            await work
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    def ended(self, request: Request) -> None:
        """To be told of every request that ended."""
        self._open -= 1
        follow = self._source.follow
        later = None if follow is None else follow(request.record)
        if later is not None:
            seconds, record = later
            self._open += 1
            asyncio.get_running_loop().call_later(seconds / self._time_scale, self._arrive_now, record)
        elif self._source.concurrency is not None:
            # Not from here: with every instance away, requests that fail at once would call each other without end.
            self._open += 1
            asyncio.get_running_loop().call_soon(self._next)
        else:
            self._check()

    async def _work(self) -> None:
        if self._source.concurrency is None:
            await self._in_time()
        else:
            self._open += self._source.concurrency
            for _ in range(self._source.concurrency):
                self._next()
        await self._finished.wait()

    async def _in_time(self) -> None:
        clock, scale = self._clock, self._time_scale
        at_once = 0
        for record in self._source.records:
            due = self._start + record.arrival / scale
            now = clock.now()
            if due > now:
                at_once = 0
                await asyncio.sleep(due - now)
                now = clock.now()
            else:
                at_once += 1
                if at_once % _AT_ONCE == 0:
                    await asyncio.sleep(0)
            if now - due > self.most_late:
                self.most_late = now - due
            self._open += 1
            # Waiting counts from when the request was due, also if this player was late; never from the future.
            self._arrive(record, min(due, now))
        self._exhausted = True
        self._check()

    def _next(self) -> None:
        """One user of a closed loop goes on with the next record, if there is one."""
        record = next(self._source.records, None)
        if record is None:
            self._exhausted = True
            self._open -= 1
            self._check()
        else:
            self._arrive_now(record)

    def _arrive_now(self, record: TraceRecord) -> None:
        self._arrive(record, self._clock.now())

    def _arrive(self, record: TraceRecord, arrival: float) -> None:
        position = self._count
        self._count += 1
        # The least that can be asked for is one token: the one that the prefill makes.
        tokens = max(record.output_tokens, 1)
        if self._cap is not None and tokens > self._cap:
            tokens = self._cap
        turn = None
        if record.session is not None:
            turn = self._turns[record.session]
            self._turns[record.session] = turn + 1
        request = Request(position, record, self._source.prompt(record, position), tokens, arrival, turn)
        if record.request_id is not None:
            request.repeated = record.request_id in self._seen
            self._seen.add(record.request_id)
        self._submit(request)

    def _check(self) -> None:
        if self._exhausted and not self._open:
            self._finished.set()


def _nowhere(request: Request) -> None:
    raise AssertionError("nothing is played yet")
