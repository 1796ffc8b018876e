"""Calls to the tiers' backends, counted, with failures in one shape."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lmcache_kit.contracts.storage import Buffer, SupportsBatch
from lmcache_kit.errors import CapacityError, UnavailableError
from lmcache_kit.instance.core.tiers import Tier
from lmcache_kit.instance.store.execution import Work

__all__ = ["TierCounters", "TierIO"]

log = logging.getLogger(__name__)

T = TypeVar("T")


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
        self._batches: list[list[tuple[str, asyncio.Future[Buffer | None]]]] = [[] for _ in tiers]
        self._exchanges: set[asyncio.Task[None]] = set()

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
            # A store that is down fails every call: only the first of a row is news.
            log.log(logging.WARNING if self.available[tier] else logging.DEBUG, "%s failed: %s", location, text)
            self.last_error[tier] = text
            self.available[tier] = False
            raise UnavailableError(f"{location} failed: {text}") from error
        self.available[tier] = True
        return result

    async def get(self, tier: int, name: str) -> Buffer | None:
        """The object's bytes. Reads of one object at the same time become one.

        Where the backend can read several objects in one exchange, reads that begin together share one.
        """
        backend = self.tiers[tier].backend
        if self.tiers[tier].inline:
            blob = await self._call(tier, backend.get, name)
        else:
            task = self._reads.get((tier, name))
            if task is None:
                task = asyncio.get_running_loop().create_task(self._read(tier, name))
                self._reads[tier, name] = task
                task.add_done_callback(functools.partial(self._read_done, (tier, name)))
            blob = await asyncio.shield(task)
        if blob is not None:
            self.counters[tier].bytes_read += memoryview(blob).nbytes
        return blob

    async def _read(self, tier: int, name: str) -> Buffer | None:
        backend = self.tiers[tier].backend
        if not isinstance(backend, SupportsBatch):
            return await self._call(tier, backend.get, name)
        loop = asyncio.get_running_loop()
        waiting = self._batches[tier]
        if not waiting:
            loop.call_soon(self._send_batch, tier)
        place: asyncio.Future[Buffer | None] = loop.create_future()
        waiting.append((name, place))
        return await place

    def _send_batch(self, tier: int) -> None:
        waiting, self._batches[tier] = self._batches[tier], []
        task = asyncio.get_running_loop().create_task(self._read_batch(tier, waiting))
        self._exchanges.add(task)
        task.add_done_callback(self._exchanges.discard)

    async def _read_batch(self, tier: int, waiting: list[tuple[str, asyncio.Future[Buffer | None]]]) -> None:
        backend = self.tiers[tier].backend
        assert isinstance(backend, SupportsBatch)
        try:
            blobs = await self._call(tier, backend.get_many, [name for name, _ in waiting])
            if len(blobs) != len(waiting):
                raise UnavailableError(f"{self.tiers[tier].location} gave {len(blobs)} of {len(waiting)} objects")
        except UnavailableError as error:
            for _, place in waiting:
                if not place.done():
                    place.set_exception(error)
            return
        for (_, place), blob in zip(waiting, blobs, strict=True):
            if not place.done():
                place.set_result(blob)

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

    async def close(self) -> None:
        for index, tier in enumerate(self.tiers):
            try:
                await self._call(index, tier.backend.close)
            except UnavailableError:  # logged and counted; the others must still be closed
                continue
