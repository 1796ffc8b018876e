"""Admission: a queue in front of the fleet, a router behind it, and what happens when an instance is away.

A request waits in the queue, first come, first served, until an instance may take it; only then are prefixes looked up
and the instance chosen.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from lmcache_kit.client import InstanceClient
from lmcache_kit.clock import Clock
from lmcache_kit.errors import LMCacheKitError, UnavailableError
from lmcache_kit.traffic.load import Load
from lmcache_kit.traffic.request import Request
from lmcache_kit.traffic.routing import Router

__all__ = ["Dispatcher", "RequestTimeoutError"]

Lookup = Callable[[Sequence[int]], Awaitable[Mapping[str, Any]]]


class RequestTimeoutError(LMCacheKitError):
    """A request was not answered in the time that the workload gives it."""

    status = 504


class Dispatcher:
    """Sends requests to instances; every request that is submitted ends exactly once, by ``ended``.

    Args:
        clients: one per instance, by id, in the fleet's order.
        router: chooses the instance.
        lookup: asks the controller who holds a prefix.
        clock: the run's clock.
        ended: called with each request when it ends.
        limit: most requests in flight on one instance; None for no limit.
        timeout: seconds from a request's arrival to its end; None for no limit.
        retry_elsewhere: try another instance when one is away, and pass that one over until it answers again.
        probe_seconds: pause between two questions to an instance that is away.
    """

    def __init__(
        self,
        clients: Mapping[str, InstanceClient],
        router: Router,
        lookup: Lookup,
        *,
        clock: Clock,
        ended: Callable[[Request], None],
        limit: int | None = None,
        timeout: float | None = None,
        retry_elsewhere: bool = False,
        probe_seconds: float = 1.0,
    ) -> None:
        self.load = Load(len(clients), limit)
        self.lookups_failed = 0
        self.times_down = [0] * len(clients)
        self._clients = list(clients.values())
        self._places = {name: place for place, name in enumerate(clients)}
        self._router = router
        self._lookup = lookup
        self._clock = clock
        self._ended = ended
        self._timeout = timeout
        self._retry = retry_elsewhere
        self._probe_seconds = probe_seconds
        self._waiting: deque[Request] = deque()
        self._deadlines: deque[Request] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._reserved = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def failure(self) -> asyncio.Future[None]:
        """Never has a result; fails when something raises that is no LMCacheKitError."""
        return self._failure

    def submit(self, request: Request) -> None:
        """Queue a request; it ends by itself."""
        if not self.load.any_up:
            self._end(request, UnavailableError("every instance is away"))
            return
        if self._timeout is not None:
            self._deadlines.append(request)
            if self._timer is None:
                self._arm()
        self._waiting.append(request)
        self._admit()

    async def close(self) -> None:
        """End everything under way without waiting for answers; idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        self._waiting.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._failure.cancel()

    # --- the queue ---------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        waiting = self._waiting
        while waiting and self._reserved < self.load.room:
            request = waiting.popleft()
            if not request.ended:
                self._reserved += 1
                request.task = self._start(self._serve(request))

    def _start(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            error = task.exception()
            if error is not None and not self._failure.done():
                self._failure.set_exception(error)

    # --- one attempt -------------------------------------------------------------------------------------------------

    async def _serve(self, request: Request) -> None:
        """One attempt, for which a place on some instance is reserved."""
        try:
            place = await self._choose(request)
            if place is None:
                self._back(request, UnavailableError("every instance is away"))
                return
            await self._send(request, place)
        except asyncio.CancelledError:
            if not request.expired:
                raise
            self._end(request, self._too_late())
        self._admit()

    async def _choose(self, request: Request) -> int | None:
        cached: Mapping[int, int] = {}
        try:
            if self._router.wants_lookup:
                cached = await self._cached(request)
        finally:
            self._reserved -= 1
        place = self._router.choose(self.load, cached)
        if place is not None:
            request.promised = cached.get(place, 0) if self._router.wants_lookup else None
            self.load.take(place)
        return place

    async def _cached(self, request: Request) -> dict[int, int]:
        try:
            found = (await self._lookup(request.prompt))["prefix"]
        except LMCacheKitError:
            # A request is routed all the same when the controller cannot say who holds its prefix.
            self.lookups_failed += 1
            return {}
        places = self._places
        return {places[name]: tokens for name, tokens in found.items() if name in places}

    async def _send(self, request: Request, place: int) -> None:
        request.place = place
        request.attempts += 1
        request.sent = self._clock.now()
        try:
            request.completion = await self._clients[place].stream_complete(
                request.prompt, max_tokens=request.max_tokens, temperature=0.0, ignore_eos=True
            )
        except UnavailableError as error:
            self.load.release(place)
            if self._retry:
                self._away(place)
                self._back(request, error)
            else:
                self._end(request, error)
        except LMCacheKitError as error:
            self.load.release(place)
            self._end(request, error)
        except BaseException:
            self.load.release(place)
            raise
        else:
            self.load.release(place)
            self._end(request, None)

    def _back(self, request: Request, error: LMCacheKitError) -> None:
        """To the head of the queue for another attempt, or to its end when there is nobody left to try."""
        if request.expired:
            error = self._too_late()
        if request.expired or not self.load.any_up or request.attempts >= len(self._clients):
            self._end(request, error)
            return
        request.task = None
        self._waiting.appendleft(request)
        self._admit()

    def _end(self, request: Request, error: LMCacheKitError | None) -> None:
        request.error, request.ended, request.task = error, True, None
        request.end = self._clock.now()
        if error is not None:
            request.completion = None
        deadlines = self._deadlines
        while deadlines and deadlines[0].ended:
            deadlines.popleft()
        self._ended(request)

    # --- instances that are away -------------------------------------------------------------------------------------

    def _away(self, place: int) -> None:
        if self.load.is_up(place):
            self.load.set_down(place)
            self.times_down[place] += 1
            self._start(self._probe(place))
            if not self.load.any_up:
                waiting, self._waiting = self._waiting, deque()
                for request in waiting:
                    if not request.ended:
                        self._end(request, UnavailableError("every instance is away"))

    async def _probe(self, place: int) -> None:
        while True:
            await asyncio.sleep(self._probe_seconds)
            try:
                await self._clients[place].health()
            except LMCacheKitError:
                continue
            self.load.set_up(place)
            self._admit()
            return

    # --- time limits -------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """One timer for the earliest deadline: requests come in the order of their deadlines."""
        assert self._timeout is not None
        self._timer = None
        if self._deadlines:
            left = self._deadlines[0].arrival + self._timeout - self._clock.now()
            self._timer = asyncio.get_running_loop().call_later(max(left, 0.0), self._expire)

    def _expire(self) -> None:
        assert self._timeout is not None
        now = self._clock.now()
        while self._deadlines and self._deadlines[0].arrival + self._timeout <= now:
            request = self._deadlines.popleft()
            if request.ended:
                continue
            request.expired = True
            if request.task is None:
                self._end(request, self._too_late())
            else:
                # Soon, not now: a task that is cancelled before its first step never runs, and would end nothing.
                asyncio.get_running_loop().call_soon(request.task.cancel)
        self._arm()

    def _too_late(self) -> RequestTimeoutError:
        return RequestTimeoutError(f"not answered within {self._timeout:g} s")
