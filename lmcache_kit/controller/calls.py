"""Calls to workers: one DEALER per worker, any number in flight, each with its own deadline.

A call travels as ``[correlation id, "", payload]``. LMCache's worker listens on a REP socket, which hands the envelope
back with its answer, so answers find their calls in any order and a lost one blocks nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass

import zmq

from lmcache_kit.controller.counters import Counters
from lmcache_kit.controller.monitor import join_address
from lmcache_kit.controller.planning import Call, Outcome
from lmcache_kit.controller.registry import Registry, Worker, WorkerId
from lmcache_kit.controller.sockets import LoopSocket
from lmcache_kit.errors import InvalidRequestError, LMCacheKitError, UnavailableError
from lmcache_kit.messages import ControlRetMsg, ErrorMsg, decode_control_reply, encode

__all__ = ["WorkerCalls"]

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 10_000

_CONNECT_SECONDS = 2.0
"""A worker accepts connections even while it is busy, so one that has accepted none for this long is not there."""


@dataclass(slots=True)
class _Pending:
    future: asyncio.Future[ControlRetMsg]
    deadline: asyncio.TimerHandle


class _Link:
    """The connection to one life of one worker."""

    def __init__(self, worker: Worker, context: zmq.Context[zmq.Socket[bytes]], counters: Counters) -> None:
        self.name = worker.name
        self.generation = worker.generation
        self.address = join_address(worker.ip, worker.port)
        self._counters = counters
        self._numbers = itertools.count()
        self._pending: dict[bytes, _Pending] = {}
        self._waiting: OrderedDict[bytes, bytes] = OrderedDict()
        socket = context.socket(zmq.DEALER)
        try:
            socket.setsockopt(zmq.LINGER, 0)
            # Only hand over what a live connection can take: a call that timed out must not be delivered to a worker
            # that comes back later.
            socket.setsockopt(zmq.IMMEDIATE, 1)
            socket.setsockopt(zmq.RECONNECT_IVL, 50)
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
            if ":" in worker.ip:
                socket.setsockopt(zmq.IPV6, 1)
            socket.connect(f"tcp://{self.address}")
        except (zmq.ZMQError, ValueError, UnicodeError) as error:
            socket.close(linger=0)
            raise UnavailableError(
                f"worker {self.name} registered the address {self.address!r}, which cannot be connected to: {error}"
            ) from None
        # A worker that is killed takes its connection with it, which libzmq knows at once and tells only here.
        self._monitored = socket
        self._events = LoopSocket(socket.get_monitor_socket(zmq.EVENT_DISCONNECTED), self._on_disconnect)
        self._socket = LoopSocket(socket, self._on_answer, self._send_waiting)

    def call(self, payload: bytes, timeout: float) -> asyncio.Future[ControlRetMsg]:
        """The future answer; UnavailableError in it when none came in time."""
        loop = asyncio.get_running_loop()
        if len(self._pending) >= MAX_IN_FLIGHT:
            raise UnavailableError(f"worker {self.name} has {MAX_IN_FLIGHT} calls under way already")
        number = next(self._numbers).to_bytes(8, "big")
        future: asyncio.Future[ControlRetMsg] = loop.create_future()
        # The client may be gone before the answer comes; then nobody asks for the error.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._pending[number] = _Pending(future, loop.call_later(timeout, self._expire, number, timeout))
        self._waiting[number] = payload
        self._send_waiting()
        if number in self._waiting and timeout > _CONNECT_SECONDS:
            loop.call_later(_CONNECT_SECONDS, self._give_up, number)
        return future

    def close(self, why: str) -> None:
        """End all calls under way."""
        # Stops the events before the socket that they are about is closed.
        self._monitored.disable_monitor()
        self._events.close()
        self._socket.close()
        self._waiting.clear()
        for number in list(self._pending):
            self._fail(number, UnavailableError(f"worker {self.name} {why} while a call was under way"))

    def _send_waiting(self) -> None:
        while self._waiting:
            number, payload = next(iter(self._waiting.items()))
            if not self._socket.send([number, b"", payload]):
                return
            self._waiting.pop(number, None)

    def _on_answer(self, frames: list[bytes]) -> None:
        pending = self._pending.pop(frames[0], None)
        if pending is None:
            self._counters.calls["late"] += 1
            return
        pending.deadline.cancel()
        if pending.future.done():
            return
        try:
            pending.future.set_result(decode_control_reply(frames[-1]))
        except InvalidRequestError as error:
            self._counters.calls["malformed"] += 1
            failure = LMCacheKitError(f"worker {self.name} sent an answer that cannot be read: {error.message}")
            failure.status = 502
            pending.future.set_exception(failure)

    def _give_up(self, number: bytes) -> None:
        if number in self._waiting:
            self._expire(number, _CONNECT_SECONDS)

    def _expire(self, number: bytes, timeout: float) -> None:
        unsent = self._waiting.pop(number, None) is not None
        self._counters.calls["timeout"] += 1
        if unsent:
            why, hint = f"cannot be reached at {self.address}", "is it running?"
        else:
            why, hint = "did not answer", "is it overloaded? --call-timeout of the controller sets the deadline"
        self._fail(number, UnavailableError(f"worker {self.name} {why} within {timeout:g} s", hint=hint))

    def _on_disconnect(self, frames: list[bytes]) -> None:
        """The answers of calls under way are lost; those still unsent may reach the worker's next life."""
        lost = [number for number in self._pending if number not in self._waiting]
        for number in lost:
            self._counters.calls["lost"] += 1
            self._fail(
                number,
                UnavailableError(
                    f"worker {self.name} closed its connection while a call was under way",
                    hint="is it running? the call may have been carried out",
                ),
            )

    def _fail(self, number: bytes, error: LMCacheKitError) -> None:
        pending = self._pending.pop(number, None)
        if pending is not None:
            pending.deadline.cancel()
            if not pending.future.done():
                pending.future.set_exception(error)


class WorkerCalls:
    """Makes the calls of plans."""

    def __init__(
        self,
        registry: Registry,
        context: zmq.Context[zmq.Socket[bytes]],
        counters: Counters,
        *,
        timeout: float,
    ) -> None:
        self._registry = registry
        self._context = context
        self._counters = counters
        self._timeout = timeout
        self._links: dict[WorkerId, _Link] = {}

    async def make(self, calls: tuple[Call, ...]) -> list[Outcome]:
        """All calls at once; one outcome each, in order."""
        futures: list[asyncio.Future[ControlRetMsg] | LMCacheKitError] = []
        for call in calls:
            try:
                futures.append(self._link(call.worker).call(_payload(call), self._timeout))
            except LMCacheKitError as error:
                futures.append(error)
        outcomes: list[Outcome] = []
        for future in futures:
            if isinstance(future, LMCacheKitError):
                outcomes.append(future)
                continue
            try:
                answer = await future
            except LMCacheKitError as error:
                outcomes.append(error)
            else:
                self._counters.calls["refused" if isinstance(answer, ErrorMsg) else "answered"] += 1
                outcomes.append(answer)
        return outcomes

    def prune(self) -> None:
        """Close the connections to workers that left, died or registered anew."""
        for worker_id, link in list(self._links.items()):
            worker = self._registry.find(*worker_id)
            if worker is None or worker.generation != link.generation or not worker.alive:
                why = "left" if worker is None else "registered anew" if worker.alive else "missed its heartbeats"
                del self._links[worker_id]
                link.close(why)

    def close(self) -> None:
        """End all calls; idempotent."""
        while self._links:
            self._links.popitem()[1].close("was cut off, the controller stops,")

    def _link(self, worker: Worker) -> _Link:
        link = self._links.get(worker.id)
        if link is not None and link.generation != worker.generation:
            del self._links[worker.id]
            link.close("registered anew")
            link = None
        if link is None:
            link = self._links[worker.id] = _Link(worker, self._context, self._counters)
        return link


def _payload(call: Call) -> bytes:
    with suppress(OverflowError):
        return encode(call.message)
    raise InvalidRequestError("a token id does not fit 64 bits")
