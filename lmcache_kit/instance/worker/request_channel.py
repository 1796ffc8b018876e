"""Requests to the controller over a DEALER socket, one at a time, each with a deadline."""

from __future__ import annotations

import asyncio

import zmq
import zmq.asyncio

from lmcache_kit.errors import InvalidRequestError, UnavailableError, error_from_status
from lmcache_kit.instance.worker.addresses import Address
from lmcache_kit.messages import ErrorMsg, WorkerReplyMsg, WorkerRequestMsg, decode_worker_reply, encode

__all__ = ["RequestChannel", "configure"]

_RECONNECT_MS = 100
_RECONNECT_MOST_MS = 2000
_LARGEST_MESSAGE = 64 * 2**20


def configure(socket: zmq.asyncio.Socket, address: Address | None = None) -> None:
    """Options that all sockets of a worker share: reconnect quickly, no unbounded frames, nothing left at close."""
    socket.linger = 0
    socket.reconnect_ivl = _RECONNECT_MS
    socket.reconnect_ivl_max = _RECONNECT_MOST_MS
    socket.maxmsgsize = _LARGEST_MESSAGE
    if address is not None and ":" in address.host:
        socket.ipv6 = True


class RequestChannel:
    """A DEALER socket to one of the controller's ROUTER sockets.

    Replies carry no correlation id in LMCache's framing (``["", payload]`` both ways), so requests are sent one by one,
    and a request that got no answer in time takes its socket with it: a late answer cannot be taken for the next one.
    """

    def __init__(self, context: zmq.asyncio.Context, address: Address) -> None:
        self.address = address
        self._context = context
        self._socket: zmq.asyncio.Socket | None = None
        self._turn = asyncio.Lock()
        self._waiting: asyncio.Task[list[bytes]] | None = None
        self._closed = False

    async def request(self, message: WorkerRequestMsg, *, timeout: float) -> WorkerReplyMsg:
        """The controller's answer; ``timeout`` counts from the request's turn.

        Raises UnavailableError when none comes in time, and the controller's own error when it answers with one.
        """
        async with self._turn:
            if self._closed:
                raise UnavailableError(f"the channel to {self.address.text} is closed")
            socket = self._connected()
            answered = False
            try:
                async with asyncio.timeout(timeout):
                    self._waiting = asyncio.create_task(_exchange(socket, encode(message)))
                    await asyncio.wait({self._waiting})
                if self._waiting.cancelled():
                    raise UnavailableError(f"the controller at {self.address.text} went away")
                frames = self._waiting.result()
                answered = True
            except TimeoutError:
                raise UnavailableError(
                    f"the controller at {self.address.text} did not answer within {timeout:g} s",
                    hint="start it, or correct controller_reply_url",
                ) from None
            except zmq.ZMQError as error:
                raise UnavailableError(f"the controller at {self.address.text} cannot be reached: {error}") from None
            finally:
                if not answered:
                    await self._abandon()
                    self._drop()
        try:
            reply = decode_worker_reply(frames[-1])
        except InvalidRequestError as error:
            raise UnavailableError(
                f"the controller at {self.address.text} answered nonsense: {error.message}"
            ) from None
        if isinstance(reply, ErrorMsg):
            raise error_from_status(reply.status, reply.error, hint=reply.hint)
        return reply

    def _connected(self) -> zmq.asyncio.Socket:
        if self._socket is None:
            self._socket = self._context.socket(zmq.DEALER)
            configure(self._socket, self.address)
            self._socket.connect(self.address.endpoint)
        return self._socket

    def interrupt(self) -> None:
        """End the request under way with UnavailableError: the controller that it went to is gone."""
        if self._waiting is not None:
            self._waiting.cancel()

    async def _abandon(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.gather(self._waiting, return_exceptions=True)

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._closed = True
        self._drop()


async def _exchange(socket: zmq.asyncio.Socket, payload: bytes) -> list[bytes]:
    await socket.send_multipart([b"", payload])
    return await socket.recv_multipart()
