"""The instance's cache in a thread of the engine's scheduler process.

Everything that waits - tiers, peers, the controller - waits there. The scheduler hands over work and goes on.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from lmcache_kit.clock import WallClock
from lmcache_kit.contracts.engine import EngineInfo
from lmcache_kit.errors import UnavailableError
from lmcache_kit.instance.config.model import InstanceConfig
from lmcache_kit.instance.event_log import CacheEventLog
from lmcache_kit.instance.runtime import InstanceRuntime
from lmcache_kit.instance.store.store import KVStore

__all__ = ["CacheThread"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_START_SECONDS = 120.0
_WORK_SECONDS = 20.0
_STOP_SECONDS = 20.0
_STATS_SECONDS = 1.0


class CacheThread:
    """One instance's tiers, peer server and controller worker, on an event loop of their own.

    Args:
        config: the instance's configuration.
        info: what the engine serves.

    Raises ConfigError when something of it cannot be started.
    """

    def __init__(self, config: InstanceConfig, info: EngineInfo) -> None:
        self._config = config
        self._info = info
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._runtime: InstanceRuntime | None = None
        self._work: set[concurrent.futures.Future[Any]] = set()
        self.stats: dict[str, Any] = {}
        """``InstanceRuntime.stats()`` of at most a second ago; a new dictionary each time."""
        started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._main, args=(started,), name="lmcache-kit cache", daemon=True)
        self._thread.start()
        started.result(_START_SECONDS)

    @property
    def store(self) -> KVStore:
        assert self._runtime is not None
        return self._runtime.store

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Have ``work`` done on the cache's loop. Raises UnavailableError once the cache is closed."""
        loop = self._loop
        if loop is None or loop.is_closed():
            work.close()
            raise UnavailableError("the cache is closed")
        future = asyncio.run_coroutine_threadsafe(work, loop)
        self._work.add(future)
        future.add_done_callback(self._work.discard)
        return future

    def close(self) -> None:
        """Finish what is under way, leave the controller and end the thread; idempotent."""
        loop, stop = self._loop, self._stop
        concurrent.futures.wait(list(self._work), _WORK_SECONDS)
        if loop is not None and stop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)
        self._thread.join(_STOP_SECONDS)
        if self._thread.is_alive():
            log.warning("the cache did not close within %g s; what it was writing may be lost", _STOP_SECONDS)

    def _main(self, started: concurrent.futures.Future[None]) -> None:
        try:
            asyncio.run(self._serve(started))
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
            else:
                log.exception("the cache has ended; requests are computed without it")

    async def _serve(self, started: concurrent.futures.Future[None]) -> None:
        config = self._config
        events = CacheEventLog(config.event_log) if config.event_log is not None else None
        try:
            runtime = InstanceRuntime(config, self._info, clock=WallClock(), on_event=events)
            await runtime.start()
            self._runtime, self._stop, self._loop = runtime, asyncio.Event(), asyncio.get_running_loop()
            self.stats = runtime.stats()
            log.info(
                "instance %s ready model=%s peer=%s tiers=%s",
                config.instance_id,
                self._info.fingerprint,
                runtime.peer_url,
                ",".join(runtime.store.locations()),
            )
            started.set_result(None)
            try:
                await self._until(self._stop, runtime)
            finally:
                await runtime.close()
        finally:
            if events is not None:
                events.close()

    async def _until(self, stop: asyncio.Event, runtime: InstanceRuntime) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _STATS_SECONDS)
                return
            try:
                self.stats = runtime.stats()
            except Exception:  # a storage plugin may raise anything; the cache goes on without its figures
                log.exception("the cache cannot be counted")
