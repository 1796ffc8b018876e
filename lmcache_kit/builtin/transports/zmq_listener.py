"""The listening side of the ZeroMQ transport: a ROUTER socket and one task per request."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Sequence
from typing import Any

import zmq
import zmq.asyncio

from lmcache_kit.builtin.transports.common import check_frames, error_text
from lmcache_kit.builtin.transports.options import ZmqOptions
from lmcache_kit.builtin.transports.zmq_wire import (
    ANSWER,
    REFUSAL,
    REQUEST,
    as_buffers,
    pack_header,
    pack_refusal,
    unpack_header,
)
from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.contracts.transport import FrameHandler, Listener
from lmcache_kit.errors import ConfigError, ConflictError, InvalidRequestError, UnavailableError

__all__ = ["ZmqListener"]

log = logging.getLogger(__name__)

_LINGER_MS = 200  # last answers may still leave when a listener is closed


class ZmqListener(Listener):
    """Answers requests that arrive on ``endpoint``, a ZeroMQ address.

    Args:
        endpoint: where to bind.
        address: how errors and :attr:`address` name it; its port 0 is replaced by the chosen one.

    Raises ConflictError when the endpoint is in use and ConfigError when it cannot be bound at all.
    """

    def __init__(self, endpoint: str, address: str, handler: FrameHandler, options: ZmqOptions) -> None:
        self._handler = handler
        self._options = options
        # A context of its own: terminating it is the one way to know that the address is free again.
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self._socket.setsockopt(zmq.SNDHWM, options.send_high_water)
        self._socket.setsockopt(zmq.RCVHWM, options.receive_high_water)
        self._socket.setsockopt(zmq.MAXMSGSIZE, options.max_message_bytes)
        self._socket.setsockopt(zmq.IPV6, 1 if "[" in endpoint else 0)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._socket.close(linger=0)
            self._context.term()
            raise _bind_error(error, address) from None
        bound = self._socket.get_string(zmq.LAST_ENDPOINT)
        self._address = address
        if address.startswith("tcp://"):
            self._address = f"{address.rpartition(':')[0]}:{bound.rpartition(':')[2]}"
        self._slots = asyncio.Semaphore(options.max_in_flight)
        self._answers: set[asyncio.Task[None]] = set()
        self._receiver = asyncio.get_running_loop().create_task(self._receive())
        self._closing: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        return self._address

    async def _receive(self) -> None:
        while True:
            await self._slots.acquire()
            task = None
            try:
                parts = await self._socket.recv_multipart(copy=False)
                task = self._start(parts)
            except InvalidRequestError as error:
                # Anyone may send anything to an open port. There is nobody to answer to.
                log.debug("%s: dropped a malformed message: %s", self._address, error.message)
            finally:
                if task is None:
                    self._slots.release()

    def _start(self, parts: Sequence[Any]) -> asyncio.Task[None]:
        if len(parts) < 2 or len(parts[1]) > 64:
            raise InvalidRequestError("the header frame is missing")
        kind, number = unpack_header(parts[1].bytes)
        if kind != REQUEST:
            raise InvalidRequestError("not a request")
        task = asyncio.get_running_loop().create_task(self._answer(parts[0].bytes, number, as_buffers(parts[2:])))
        self._answers.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._answers.discard(task)
        self._slots.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: an answer could not be sent: %r", self._address, error)

    async def _answer(self, peer: bytes, number: int, frames: list[Buffer]) -> None:
        message: list[Buffer]
        try:
            check_frames(frames, self._options.max_message_bytes)
            answer = list(await self._handler(frames))
            check_frames(answer, self._options.max_message_bytes)
            message = [peer, pack_header(ANSWER, number), *answer]
        except asyncio.CancelledError:
            refusal = pack_refusal("it was closed before it answered", None)
            with contextlib.suppress(zmq.ZMQError):
                await self._socket.send_multipart([peer, pack_header(REFUSAL, number), refusal])
            raise
        except Exception as error:  # a handler may raise anything; it belongs to the caller
            message = [peer, pack_header(REFUSAL, number), pack_refusal(*error_text(error))]
        del frames
        await self._socket.send_multipart(message, copy=False)

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        tasks = [self._receiver, *self._answers]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._socket.close()
        await asyncio.to_thread(self._context.term)


def _bind_error(error: zmq.ZMQError, address: str) -> Exception:
    if error.errno in (errno.EADDRINUSE, zmq.EADDRINUSE):
        return ConflictError(f"{address} is in use", hint="choose another port, or 0 for any free one")
    if error.errno in (errno.EMFILE, zmq.EMTHREAD):
        return UnavailableError(f"cannot listen on {address}: {error.strerror}")
    return ConfigError(f"cannot listen on {address}: {error.strerror}", hint="write it like tcp://127.0.0.1:8200")
