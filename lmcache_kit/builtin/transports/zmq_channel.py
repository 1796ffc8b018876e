"""The requesting side of the ZeroMQ transport: a DEALER socket that finds its peer again by itself."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from lmcache_kit.builtin.transports.common import check_frames, no_answer, refused
from lmcache_kit.builtin.transports.options import ZmqOptions
from lmcache_kit.builtin.transports.zmq_wire import (
    ANSWER,
    REQUEST,
    as_buffers,
    pack_header,
    unpack_header,
    unpack_refusal,
)
from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.contracts.transport import Channel
from lmcache_kit.errors import ConfigError, InvalidRequestError, UnavailableError

__all__ = ["ZmqChannel"]

_RECONNECT_MS, _RECONNECT_MAX_MS = 100, 1000
# Answers that arrived before the connection broke are still on their way through the socket. Shorter than the time
# to a new connection, so that no request on that one is taken for lost.
_LAST_ANSWERS_SECONDS = 0.05


@dataclass(slots=True)
class _Call:
    future: asyncio.Future[list[Buffer]]
    sent: bool = False


class ZmqChannel(Channel):
    """Requests to ``endpoint``, a ZeroMQ address.

    Requests are sent only over an established connection, so none is delivered to a peer that starts long after the
    requester gave up. When the connection breaks, the requests that went over it fail at once.

    Args:
        endpoint: where to connect.
        address: how errors name it.
        late: called with an answer that arrives after its requester gave up.

    Raises ConfigError when ``endpoint`` is not an address.
    """

    def __init__(
        self, endpoint: str, address: str, options: ZmqOptions, late: Callable[[list[Buffer]], None] | None = None
    ) -> None:
        self._address = address
        self._options = options
        self._late = late
        self._socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        self._socket.setsockopt(zmq.SNDHWM, options.send_high_water)
        self._socket.setsockopt(zmq.RCVHWM, options.receive_high_water)
        self._socket.setsockopt(zmq.MAXMSGSIZE, options.max_message_bytes)
        self._socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
        self._socket.setsockopt(zmq.TCP_KEEPALIVE, 1)  # notices a host that vanished
        self._socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 30)
        self._socket.setsockopt(zmq.IPV6, 1 if "[" in endpoint else 0)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self._close_sockets()
            raise ConfigError(
                f"cannot connect to {address}: {error.strerror}", hint="write it like tcp://127.0.0.1:8200"
            ) from None
        self._connected = False
        self._closed = False
        self._numbers = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._receive()), loop.create_task(self._watch())]

    @property
    def connected(self) -> bool:
        """Whether there is a connection at the moment."""
        return self._connected

    async def request(self, frames: Sequence[Buffer], *, timeout: float) -> list[Buffer]:
        if self._closed:
            raise UnavailableError(f"the channel to {self._address} is closed")
        check_frames(frames, self._options.max_message_bytes)
        number = next(self._numbers)
        call = _Call(asyncio.get_running_loop().create_future())
        self._calls[number] = call
        try:
            async with asyncio.timeout(timeout):
                await self._send([pack_header(REQUEST, number), *frames], call)
                return await call.future
        except TimeoutError:
            raise no_answer(self._address, timeout, connected=self._connected) from None
        except zmq.ZMQError as error:
            raise UnavailableError(f"cannot send to {self._address}: {error.strerror}") from None
        finally:
            del self._calls[number]
            if call.future.done() and not call.future.cancelled():
                call.future.exception()  # seen, when it came together with the deadline

    async def _send(self, message: list[Buffer], call: _Call) -> None:
        sending = asyncio.ensure_future(self._socket.send_multipart(message, copy=False))
        try:
            either: set[asyncio.Future[Any]] = {sending, call.future}
            limit = self._options.connect_seconds
            done, _ = await asyncio.wait(either, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                if not self._connected:
                    raise no_answer(self._address, limit, connected=False)
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
                call.sent = True
        finally:
            sending.cancel()

    async def _receive(self) -> None:
        while True:
            parts = await self._socket.recv_multipart(copy=False)
            number = 0
            try:
                kind, number = unpack_header(parts[0].bytes if len(parts[0]) <= 64 else b"")
            except InvalidRequestError:
                kind = REQUEST
            if kind == REQUEST:
                continue  # whoever listens there does not speak this protocol; the deadline tells the caller
            frames = as_buffers(parts[1:])
            call = self._calls.get(number)
            if call is None or call.future.done():
                if kind == ANSWER and self._late is not None:
                    self._late(frames)
            elif kind == ANSWER:
                call.future.set_result(frames)
            else:
                call.future.set_exception(refused(self._address, *unpack_refusal(frames)))

    async def _watch(self) -> None:
        while True:
            event = parse_monitor_message(await self._monitor.recv_multipart())["event"]
            self._connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            if not self._connected:
                await asyncio.sleep(_LAST_ANSWERS_SECONDS)
                lost = [call for call in self._calls.values() if call.sent]
                self._fail(lost, f"{self._address} closed the connection before it answered")

    @staticmethod
    def _fail(calls: Sequence[_Call], message: str) -> None:
        for call in calls:
            if not call.future.done():
                call.future.set_exception(UnavailableError(message))

    def _close_sockets(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail(list(self._calls.values()), f"the channel to {self._address} was closed before the answer came")
        self._close_sockets()
