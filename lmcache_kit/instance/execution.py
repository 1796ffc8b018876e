"""How the store runs things: backend calls, work in threads, waiting for a change, background queues."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from lmcache_kit.contracts.storage import Buffer, SupportsHealth
from lmcache_kit.errors import CapacityError, UnavailableError
from lmcache_kit.instance.tiers import Tier

__all__ = ["BackgroundQueue", "Signal", "TierCounters", "TierIO", "Work"]

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


@dataclass(slots=True)
class TierCounters:
    """Facts of one tier since the store was opened; what each counts is its name."""

    hits: int = 0
    hit_tokens: int = 0
    bytes_read: int = 0
    writes: int = 0
    bytes_written: int = 0
    evictions: int = 0
    demotions: int = 0
    promotions: int = 0
    write_backs: int = 0
    damaged: int = 0
    missing: int = 0
    unavailable: int = 0
    failed_writes: int = 0
    recovered: int = 0


class TierIO:
    """Calls to the backends: inline ones on the loop, others in threads.

    A failure is a CapacityError of the backend (its disk is full) or else an UnavailableError, whatever it raised.
    """

    def __init__(self, tiers: Sequence[Tier], work: Work) -> None:
        self.tiers = list(tiers)
        self.counters = [TierCounters() for _ in tiers]
        self.available = [True] * len(self.tiers)
        """Whether the last call to each backend succeeded."""
        self.last_error = [""] * len(self.tiers)
        self._work = work
        self._reads: dict[tuple[int, str], asyncio.Task[Buffer | None]] = {}

    async def _call(self, tier: int, function: Callable[..., T], *args: Any) -> T:
        try:
            inline = self.tiers[tier].inline
            result = function(*args) if inline else await self._work.call(function, *args)
        except CapacityError:  # the backend's own room is full; it can be reached
            raise
        except Exception as error:  # a backend is a plugin and may raise anything
            self.counters[tier].unavailable += 1
            location = self.tiers[tier].location
            text = str(error) if isinstance(error, UnavailableError) else f"{type(error).__name__}: {error}"
            self.last_error[tier] = text
            self.available[tier] = False
            log.warning("%s failed: %s", location, text)
            raise UnavailableError(f"{location} failed: {text}") from error
        self.available[tier] = True
        return result

    async def get(self, tier: int, name: str) -> Buffer | None:
        """The object's bytes. Reads of one object at the same time become one."""
        backend = self.tiers[tier].backend
        if self.tiers[tier].inline:
            blob = await self._call(tier, backend.get, name)
        else:
            task = self._reads.get((tier, name))
            if task is None:
                task = asyncio.get_running_loop().create_task(self._call(tier, backend.get, name))
                self._reads[tier, name] = task
                task.add_done_callback(functools.partial(self._read_done, (tier, name)))
            blob = await asyncio.shield(task)
        if blob is not None:
            self.counters[tier].bytes_read += memoryview(blob).nbytes
        return blob

    def _read_done(self, place: tuple[int, str], task: asyncio.Task[Buffer | None]) -> None:
        if self._reads.get(place) is task:
            del self._reads[place]
        if not task.cancelled():
            task.exception()

    def stale(self, tier: int, name: str) -> None:
        """The object changes: a read that begins from now on must not join one that began before."""
        self._reads.pop((tier, name), None)

    async def put(self, tier: int, name: str, blob: Buffer) -> None:
        self.stale(tier, name)
        try:
            await self._call(tier, self.tiers[tier].backend.put, name, blob)
        finally:
            self.stale(tier, name)
        self.counters[tier].writes += 1
        self.counters[tier].bytes_written += memoryview(blob).nbytes

    async def delete(self, tier: int, name: str) -> bool:
        self.stale(tier, name)
        return await self._call(tier, self.tiers[tier].backend.delete, name)

    async def size(self, tier: int, name: str) -> int | None:
        return await self._call(tier, self.tiers[tier].backend.size, name)

    async def entries(self, tier: int) -> list[tuple[str, int]]:
        return await self._call(tier, lambda: list(self.tiers[tier].backend.entries()))

    async def health(self, tier: int) -> dict[str, Any]:
        """``available`` and the facts that the backend tells, or the error."""
        backend = self.tiers[tier].backend
        if not isinstance(backend, SupportsHealth):
            error = {} if self.available[tier] else {"error": self.last_error[tier]}
            return {"available": self.available[tier], **error}
        try:
            return {**await self._call(tier, backend.health), "available": True}
        except UnavailableError as error:
            return {"available": False, "error": error.message}

    async def close(self) -> None:
        for index, tier in enumerate(self.tiers):
            try:
                await self._call(index, tier.backend.close)
            except UnavailableError:  # logged and counted; the others must still be closed
                continue


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
