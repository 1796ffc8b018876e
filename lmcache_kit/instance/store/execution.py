"""How the store runs things: work in threads, waiting for a change, background queues."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["BackgroundQueue", "Batches", "Signal", "Work"]

log = logging.getLogger(__name__)

T = TypeVar("T")


class Signal:
    """Wakes everybody who waits for the core's state to change."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    async def wait(self) -> None:
        """Until the next :meth:`notify`. Check the condition before and after, with no await in between."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def notify(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


class Work:
    """The store's thread pool, and its tasks that must run to their end."""

    def __init__(self, threads: int) -> None:
        self.threads = max(1, threads)
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="lmcache-kit-store")
        self._tasks: set[asyncio.Task[Any]] = set()

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """``function(*args)`` in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, functools.partial(function, *args))

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Await ``work``; when the caller is cancelled the work still runs to its end, so that no state is left half
        way."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its waiter has it too; a waiter that was cancelled does not want it

    async def drain(self) -> None:
        """Until no such work is left."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def close(self) -> None:
        self._pool.shutdown(wait=True)


class Batches:
    """Calls in threads, where those that begin at the same moment share the way there and back.

    Handing a call to a thread costs about as much as checking and decoding a small chunk, so small calls go together;
    a call that is worth a thread's turn of its own gets one.

    Args:
        work: whose threads.
        least_bytes: what makes a turn worth while.
    """

    def __init__(self, work: Work, least_bytes: int = 2**20) -> None:
        self._work = work
        self._least = least_bytes
        self._waiting: list[tuple[int, Callable[[], Any], asyncio.Future[Any]]] = []
        self._turns: set[asyncio.Task[None]] = set()

    async def call(self, nbytes: int, function: Callable[..., T], *args: Any) -> T:
        """``function(*args)`` in a thread; it works on ``nbytes``."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._start)
        done: asyncio.Future[T] = loop.create_future()
        self._waiting.append((nbytes, functools.partial(function, *args), done))
        return await done

    def _start(self) -> None:
        waiting, self._waiting = self._waiting, []
        turns = min(len(waiting), max(1, sum(nbytes for nbytes, _, _ in waiting) // self._least))
        for turn in range(turns):
            # Neighbours stay together: a prefix is then complete up to where its first turns are done.
            part = waiting[len(waiting) * turn // turns : len(waiting) * (turn + 1) // turns]
            task = asyncio.get_running_loop().create_task(self._turn([(call, done) for _, call, done in part]))
            self._turns.add(task)
            task.add_done_callback(self._turns.discard)

    async def _turn(self, calls: list[tuple[Callable[[], Any], asyncio.Future[Any]]]) -> None:
        try:
            outcomes = await self._work.call(_outcomes, [call for call, _ in calls])
        except BaseException as error:  # the threads are closed, or this task is cancelled
            outcomes = [(None, error)] * len(calls)
        for (_, done), (result, failure) in zip(calls, outcomes, strict=True):
            if done.done():  # its caller was cancelled
                continue
            if isinstance(failure, asyncio.CancelledError):
                done.cancel()
            elif failure is not None:
                done.set_exception(failure)
            else:
                done.set_result(result)


def _outcomes(calls: list[Callable[[], Any]]) -> list[tuple[Any, BaseException | None]]:
    found: list[tuple[Any, BaseException | None]] = []
    for call in calls:
        try:
            found.append((call(), None))
        except Exception as error:
            found.append((None, error))
    return found


class BackgroundQueue:
    """Runs coroutines one after another, in order, while nothing waits for them.

    Args:
        limit: most entries that may wait; more are dropped and counted, since background work is optional.
    """

    def __init__(self, limit: int = 256) -> None:
        self._limit = limit
        self._queue: deque[Callable[[], Awaitable[None]]] = deque()
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0

    def add(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Append; False when the queue is full."""
        if len(self._queue) >= self._limit:
            self.dropped += 1
            return False
        self._queue.append(work)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        return True

    async def _run(self) -> None:
        while self._queue:
            work = self._queue.popleft()
            try:
                await work()
            except Exception:  # a failed copy loses nothing: the source is still there
                log.exception("background work failed")

    async def idle(self) -> None:
        """Until everything that was added is done."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])
