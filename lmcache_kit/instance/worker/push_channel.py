"""Messages pushed to the controller, and notice of every new connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from lmcache_kit.instance.worker.addresses import Address
from lmcache_kit.instance.worker.request_channel import configure
from lmcache_kit.messages import PushedMsg, encode

__all__ = ["PushChannel"]

log = logging.getLogger(__name__)

_GOODBYE_MS = 500


class PushChannel:
    """A PUSH socket to the controller's PULL socket.

    It queues only while connected, so that what is sent goes to a controller that is there; without one, sending waits.

    Args:
        on_reconnect: called for every connection after the first: frames may have been lost in between, and the
            controller may be another process.
    """

    def __init__(self, context: zmq.asyncio.Context, address: Address, *, on_reconnect: Callable[[], None]) -> None:
        self.connections = 0
        self._on_reconnect = on_reconnect
        self._endpoint = address.endpoint
        self._cut = False
        self._socket: zmq.asyncio.Socket = context.socket(zmq.PUSH)
        configure(self._socket, address)
        self._socket.immediate = True
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._socket.connect(self._endpoint)
        self._watch = asyncio.create_task(self._watch_connections(), name="lmcache-kit push monitor")

    async def _watch_connections(self) -> None:
        while True:
            event = parse_monitor_message(await self._monitor.recv_multipart())
            if event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.connections += 1
                if self.connections > 1:
                    self._on_reconnect()

    def set_cut(self, cut: bool) -> None:
        """Have no connection while ``cut``; the one after it counts as a new one. Idempotent."""
        if cut == self._cut:
            return
        self._cut = cut
        if cut:
            self._socket.disconnect(self._endpoint)
        else:
            self._socket.connect(self._endpoint)

    async def send(self, messages: Sequence[PushedMsg]) -> None:
        """Send each message as a part of one multipart; waits while there is no controller or its queue is full."""
        await self._socket.send_multipart([encode(message) for message in messages])

    async def try_send(self, messages: Sequence[PushedMsg]) -> bool:
        """Send if that is possible at once; whether it was."""
        if not int(self._socket.get(zmq.EVENTS)) & zmq.POLLOUT:
            return False
        await self._socket.send_multipart([encode(message) for message in messages])
        return True

    async def close(self, goodbye: PushedMsg | None = None) -> None:
        """Send ``goodbye`` when the controller is there, and close."""
        self._watch.cancel()
        await asyncio.gather(self._watch, return_exceptions=True)
        if goodbye is not None and not self._socket.closed and await self.try_send([goodbye]):
            self._socket.linger = _GOODBYE_MS
        if not self._socket.closed:
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
            self._socket.close()
