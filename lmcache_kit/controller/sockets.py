"""ZeroMQ sockets on the running event loop, without a thread and without blocking it.

libzmq's file descriptor is edge-triggered: it says that something happened, once. So a wake-up reads until nothing is
left, and sending, which may swallow the signal, is followed by another look.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import zmq

__all__ = ["LoopSocket"]

log = logging.getLogger(__name__)

_TURN_SECONDS = 0.004
"""Reading stops after this long to let the loop do other work: short for a client that waits, long for one frame."""


class LoopSocket:
    """A ZeroMQ socket whose messages go to a callback.

    Args:
        socket: bound or connected by the caller; closed with this object.
        on_message: called with the frames of each message; what it raises is logged and survived.
        on_ready: called after reading, when there may be room to send again.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        on_message: Callable[[list[bytes]], None],
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        self._socket = socket
        self._on_message = on_message
        self._on_ready = on_ready
        self._loop = asyncio.get_running_loop()
        self._fd = int(socket.getsockopt(zmq.FD))
        self._scheduled = False
        self._closed = False
        self._loop.add_reader(self._fd, self._drain)
        self._schedule()

    def send(self, frames: list[bytes]) -> bool:
        """Send without waiting; False when there is no room or no connection. Never raises for a lost peer."""
        if self._closed:
            return False
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            log.debug("not sent: %s", error)
            return False
        finally:
            self._schedule()
        return True

    def close(self) -> None:
        """Stop listening and drop what is unsent; idempotent."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._fd)
            self._socket.close(linger=0)

    def _schedule(self) -> None:
        if not self._scheduled and not self._closed:
            self._scheduled = True
            self._loop.call_soon(self._drain_again)

    def _drain_again(self) -> None:
        self._scheduled = False
        self._drain()

    def _drain(self) -> None:
        if self._closed:
            return
        until = time.perf_counter() + _TURN_SECONDS
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            except zmq.ZMQError as error:
                log.warning("socket error: %s", error)
                break
            try:
                self._on_message(frames)
            except Exception:
                log.exception("a message was left out")
            if self._closed:
                return
            if time.perf_counter() > until:
                self._schedule()
                return
        if self._on_ready is not None:
            self._on_ready()
