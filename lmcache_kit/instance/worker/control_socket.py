"""The worker's control socket: a ROUTER that REQ and DEALER peers call, many at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

import zmq
import zmq.asyncio

from lmcache_kit.errors import ConfigError, InvalidRequestError
from lmcache_kit.instance.worker.control_handlers import error_message
from lmcache_kit.instance.worker.request_channel import configure
from lmcache_kit.messages import ControlMsg, ControlRetMsg, decode_control, encode

__all__ = ["ControlSocket"]

log = logging.getLogger(__name__)

_MOST_IN_FLIGHT = 1024


class ControlSocket:
    """Receives control messages and answers each when its handler is done, in any order.

    A request is ``[envelope..., "", payload]``; the answer carries the same envelope, so peers that put a correlation
    id in front of the empty frame can tell answers apart. Anything that is not a control message is answered with an
    ErrorMsg.

    Args:
        handler: answers one message; must not raise.
    """

    def __init__(self, context: zmq.asyncio.Context, handler: Callable[[ControlMsg], Awaitable[ControlRetMsg]]) -> None:
        self._handler = handler
        self._socket: zmq.asyncio.Socket = context.socket(zmq.ROUTER)
        self._slots = asyncio.Semaphore(_MOST_IN_FLIGHT)
        self._tasks: set[asyncio.Task[None]] = set()
        self._receiver: asyncio.Task[None] | None = None
        self.port = 0
        self.cut = False
        """While set, requests are dropped as a broken network drops them: nobody gets an answer."""

    def bind(self, host: str, port: int) -> None:
        """Bind and begin to answer; ``port`` 0 takes a free one, which :attr:`port` then names.

        Raises ConfigError, naming the key to change, when the port is taken or the host is not one of this machine.
        """
        configure(self._socket)
        if ":" in host:
            self._socket.ipv6 = True
        try:
            self._socket.bind(f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}")
        except zmq.ZMQError as error:
            self._socket.close(linger=0)
            if error.errno == zmq.EADDRINUSE:
                raise ConfigError(
                    f"port {port} is in use", hint="set lmcache_worker_ports to a free port, or to 0 for any"
                ) from None
            raise ConfigError(
                f"the control socket cannot bind {host}:{port}: {error.strerror}",
                hint="set extra_config.lmcache_kit.control_host to an address of this machine, "
                "and lmcache_worker_ports to a port that you may use",
            ) from None
        self.port = int(self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        self._receiver = asyncio.create_task(self._receive(), name="lmcache-kit control socket")

    async def _receive(self) -> None:
        while True:
            await self._slots.acquire()
            try:
                frames = await self._socket.recv_multipart()
            except zmq.ZMQError as error:
                self._slots.release()
                log.warning("control socket: %s", error)
                await asyncio.sleep(0.1)
                continue
            if self.cut:
                self._slots.release()
                continue
            task = asyncio.create_task(self._serve(frames))
            self._tasks.add(task)
            task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._slots.release()
        if not task.cancelled() and task.exception() is not None:
            log.error("a control message could not be answered", exc_info=task.exception())

    async def _serve(self, frames: list[bytes]) -> None:
        # A peer without the empty frame (a bare DEALER) is answered the same way, after its identity.
        cut = frames.index(b"", 1) + 1 if b"" in frames[1:-1] else 1
        envelope, payload = frames[:cut], frames[cut:]
        try:
            if len(payload) != 1:
                raise InvalidRequestError(f"a control message has one frame, not {len(payload)}")
            answer = await self._handler(decode_control(payload[0]))
        except InvalidRequestError as error:
            answer = error_message(error)
        if self.cut:
            return
        with contextlib.suppress(zmq.ZMQError):  # the caller is gone
            await self._socket.send_multipart([*envelope, encode(answer)])

    async def close(self) -> None:
        """Stop answering and free the port; idempotent."""
        tasks = [task for task in (self._receiver, *self._tasks) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._receiver = None
        self._socket.close(linger=0)
