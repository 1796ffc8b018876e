"""Transport within one process: a request is a call, frames pass by reference.

Listener and channel may live on different event loops (threads) of the process; the handler always runs on the
listener's loop.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Sequence

from lmcache_kit.builtin.transports.common import check_frames, error_text, no_answer, refused, split_address
from lmcache_kit.builtin.transports.options import InprocOptions
from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.contracts.transport import Channel, FrameHandler, Listener, Transport
from lmcache_kit.errors import ConflictError, UnavailableError

__all__ = ["InprocTransport"]

_lock = threading.Lock()
_listeners: dict[str, InprocListener] = {}
_waiters: dict[str, set[asyncio.Future[None]]] = {}
_numbers = itertools.count(1)


def _share(frames: Sequence[Buffer]) -> list[Buffer]:
    # The other side must not be able to write into our buffers, as over any other transport.
    return [frame if isinstance(frame, bytes) else memoryview(frame).toreadonly() for frame in frames]


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class InprocListener(Listener):
    def __init__(self, address: str, handler: FrameHandler, limit: int) -> None:
        self._address = address
        self._handler = handler
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[list[Buffer]]] = set()
        self._closing: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        return self._address

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    async def handle(self, frames: list[Buffer]) -> list[Buffer]:
        """Answer one request in a task of its own, so that a caller that gives up does not cut it short."""
        if self._closing is not None:
            raise UnavailableError(f"{self._address} was closed")
        task = self._loop.create_task(self._answer(frames))
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise UnavailableError(f"{self._address} was closed before it answered") from None
            raise

    async def _answer(self, frames: list[Buffer]) -> list[Buffer]:
        try:
            answer = list(await self._handler(frames))
            check_frames(answer, self._limit)
        except Exception as error:  # a handler may raise anything; it belongs to the caller
            raise refused(self._address, *error_text(error)) from None
        return _share(answer)

    def _forget(self, task: asyncio.Task[list[Buffer]]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen, although the caller may have given up

    async def close(self) -> None:
        if self._closing is None:
            # In a task of its own: a handler that closes its listener is one of those that are waited for.
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        with _lock:
            if _listeners.get(self._address) is self:
                del _listeners[self._address]
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class InprocChannel(Channel):
    def __init__(self, address: str, limit: int) -> None:
        self._address = address
        self._limit = limit
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def request(self, frames: Sequence[Buffer], *, timeout: float) -> list[Buffer]:
        if self._closed.done():
            raise UnavailableError(f"the channel to {self._address} is closed")
        check_frames(frames, self._limit)
        call = asyncio.ensure_future(self._call(_share(frames), timeout))
        try:
            await asyncio.wait((call, self._closed), return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                raise UnavailableError(f"the channel to {self._address} was closed before the answer came")
            return call.result()
        finally:
            call.cancel()

    async def _call(self, frames: list[Buffer], timeout: float) -> list[Buffer]:
        found = False
        try:
            async with asyncio.timeout(timeout):
                listener = await self._find()
                found = True
                if listener.loop is asyncio.get_running_loop():
                    return await listener.handle(frames)
                try:
                    pending = asyncio.run_coroutine_threadsafe(listener.handle(frames), listener.loop)
                except RuntimeError:  # its loop ended without closing the listener
                    raise UnavailableError(f"the event loop of {self._address} has ended") from None
                return await asyncio.wrap_future(pending)
        except TimeoutError:
            raise no_answer(self._address, timeout, connected=found) from None

    async def _find(self) -> InprocListener:
        while True:
            waiter = asyncio.get_running_loop().create_future()
            with _lock:
                listener = _listeners.get(self._address)
                if listener is not None:
                    return listener
                _waiters.setdefault(self._address, set()).add(waiter)
            try:
                await waiter
            finally:
                with _lock:
                    waiting = _waiters.get(self._address, set())
                    waiting.discard(waiter)
                    if not waiting:
                        _waiters.pop(self._address, None)

    async def close(self) -> None:
        if not self._closed.done():
            self._closed.set_result(None)
        await asyncio.sleep(0)


class InprocTransport(Transport):
    """Addresses are ``inproc://name``; listening on ``inproc://*`` chooses a name."""

    def __init__(self, options: InprocOptions | None = None) -> None:
        self._options = options or InprocOptions()

    async def listen(self, address: str, handler: FrameHandler) -> Listener:
        if split_address(address, "inproc", wildcard=True) == "*":
            address = f"inproc://auto-{next(_numbers)}"
        listener = InprocListener(address, handler, self._options.max_message_bytes)
        with _lock:
            if address in _listeners:
                raise ConflictError(f"{address} is in use", hint="choose another name or close its listener")
            _listeners[address] = listener
            waiters = list(_waiters.get(address, ()))
        for waiter in waiters:
            try:
                waiter.get_loop().call_soon_threadsafe(_wake, waiter)
            except RuntimeError:  # that loop is gone, and its request with it
                continue
        return listener

    async def connect(self, address: str) -> Channel:
        split_address(address, "inproc")
        return InprocChannel(address, self._options.max_message_bytes)
