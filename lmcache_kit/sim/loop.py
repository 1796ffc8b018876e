"""Virtual time: an event loop on which nothing takes time but what is waited for.

It is an asyncio event loop, so that workloads and the controller's handlers run on it as they are. What happens next is
the entry of a heap with the least (time, sequence number): nothing depends on how fast the machine is.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import math
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar

from lmcache_kit.errors import LMCacheKitError

__all__ = ["VirtualClock", "VirtualLoop"]

T = TypeVar("T")


# Most of an event loop's methods are about what does not exist in virtual time.
_EventLoop: Any = asyncio.AbstractEventLoop


class VirtualLoop(_EventLoop):  # type: ignore[misc]
    """See the module. Threads, sockets and processes are not part of it, and are refused."""

    def __init__(self) -> None:
        self._now = 0.0
        self._sequence = 0
        self._upkeep = 0
        self._heap: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._ready: deque[asyncio.Handle] = deque()
        self._running = False
        self._failure: BaseException | None = None

    # --- time --------------------------------------------------------------------------------------------------------

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self._now

    def at(self, when: float, call: Callable[..., object], *args: Any) -> None:
        """Call at a time that has not passed; what an asyncio handle would cost is spared."""
        self._sequence += 1
        heapq.heappush(self._heap, (when if when > self._now else self._now, self._sequence, call, args))

    def after(self, seconds: float, call: Callable[..., object], *args: Any) -> None:
        """Call ``seconds`` from now."""
        self.at(self._now + seconds, call, *args)

    def upkeep(self, seconds: float, call: Callable[..., object], *args: Any) -> None:
        """Call ``seconds`` from now. A run does not go on for upkeep alone: nothing may wait for what it does."""
        self._upkeep += 1
        self.at(self._now + seconds, self._keep_up, call, args)

    def _keep_up(self, call: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._upkeep -= 1
        call(*args)

    # --- asyncio -----------------------------------------------------------------------------------------------------

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        if math.isnan(when):
            raise LMCacheKitError("a time is not a number: nothing can wait for it")
        if when < math.inf:  # what is to happen at the end of time never does
            self.at(when, self._fire, handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def _fire(self, handle: asyncio.TimerHandle) -> None:
        if not handle.cancelled():
            handle._run()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Asked by asyncio; a cancelled call is passed over when its time comes."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Any, *, name: str | None = None, context: contextvars.Context | None = None, **more: Any
    ) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, name=name, context=context, **more)

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return False

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What nobody waits for must not fail in silence: it ends the run."""
        self._failure = self._failure or context.get("exception") or LMCacheKitError(context["message"])

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> NoReturn:
        raise LMCacheKitError("there are no threads under the virtual clock")

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run until ``work`` is done; what else is scheduled is left."""
        if events._get_running_loop() is not None:
            work.close()
            raise RuntimeError("a virtual loop cannot run inside another event loop")
        task: asyncio.Task[T] = self.create_task(work)
        events._set_running_loop(self)
        self._running = True
        try:
            self._until(task)
        finally:
            if not task.done():
                task.cancel()
                self._drain()
            self._running = False
            events._set_running_loop(None)
        return task.result()

    def _until(self, task: asyncio.Task[Any]) -> None:
        heap, ready = self._heap, self._ready
        handle: Any
        call: Any
        args: Any
        while True:
            while ready:
                handle = ready.popleft()
                if not handle.cancelled():
                    handle._run()
            # A task that failed tells when nothing holds it any more: these names must not.
            handle = call = args = None
            if self._failure is not None:
                raise self._failure
            if task.done():
                return
            if len(heap) <= self._upkeep:
                raise LMCacheKitError("the simulation waits for something that never happens")
            self._now, _, call, args = heapq.heappop(heap)
            call(*args)

    def _drain(self) -> None:
        while self._ready:
            handle = self._ready.popleft()
            if not handle.cancelled():
                handle._run()


def _refused(name: str) -> Callable[..., NoReturn]:
    def refuse(self: VirtualLoop, *args: Any, **more: Any) -> NoReturn:
        raise LMCacheKitError(f"there is no {name} under the virtual clock: no sockets, processes, signals or threads")

    return refuse


for _name in dir(asyncio.AbstractEventLoop):
    if not _name.startswith("_") and _name not in vars(VirtualLoop):
        setattr(VirtualLoop, _name, _refused(_name))


class VirtualClock:
    """The readings of a virtual loop; its calendar begins in 1970.

    Args:
        loop: whose time it is.
    """

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now(self) -> float:
        return self._loop._now

    def unix(self) -> float:
        return self._loop._now
