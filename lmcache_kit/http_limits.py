"""HTTP connections that cannot hold a server's memory or descriptors by sending little, or nothing.

uvicorn bounds neither the size of a request's head, nor the time that a client takes to send it, nor how many requests
it reads while answers wait for a client to read them. Bodies are bounded by the applications; here it is their pauses.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

__all__ = ["HEAD_SECONDS", "MOST_HEAD_BYTES", "PAUSE_SECONDS", "LimitedHttp"]

MOST_HEAD_BYTES = 64 * 2**10
"""A request line and header fields that are longer, and still not complete, are refused with 431.

The same holds for what a chunked body may carry beside its content: extensions of chunks and trailers.
"""
HEAD_SECONDS = 30.0
"""From a connection's start, or from a request's first byte, to the end of its head; then 408."""
PAUSE_SECONDS = 60.0
"""The longest pause within a body; then the connection is closed."""

_BETWEEN, _HEAD, _BODY = range(3)


class LimitedHttp(HttpToolsProtocol):
    """uvicorn's protocol with limits: ``uvicorn.Config(app, http=LimitedHttp)``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._part = _BETWEEN
        self._requests = 0
        self._head_bytes = 0
        self._idle_bytes = 0
        self._heard_at = 0.0
        self._cycles: deque[RequestResponseCycle] = deque()
        self._head_timer: asyncio.TimerHandle | None = None
        self._body_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear()
        # uvicorn tells the newest request only; the one being answered would write to a closed connection.
        for cycle in self._cycles:
            cycle.disconnected = True
            cycle.message_event.set()
        self._cycles.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        requests = self._requests
        if self._part == _BODY:
            self._idle_bytes += len(data)
        else:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._part == _BODY:
            self._wait_for_body()
        elif self._part == _HEAD or requests == self._requests:
            # A part of a head, or line ends before it.
            self._wait_for_head()

    def on_message_begin(self) -> None:
        self._part = _HEAD
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._part = _BODY
        self._head_bytes = self._idle_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        super().on_headers_complete()
        self._cycles.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._part = _BETWEEN
        self._requests += 1
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._cycles:
            self._cycles.popleft()
        super().on_response_complete()
        # uvicorn reads on after every answer, also while requests that it has read wait for theirs: a client that asks
        # and never reads would fill the memory with requests.
        if self.pipeline:
            self.flow.pause_reading()

    @property
    def _busy(self) -> bool:
        """Whether an answer is under way."""
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_for_head(self) -> None:
        if self.transport.is_closing():
            self._clear()
        elif self._head_bytes > MOST_HEAD_BYTES:
            self._refuse_head()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def _head_is_late(self) -> None:
        if self._busy:  # then nobody waits for the next request yet
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)
        elif self._head_bytes or self._part == _HEAD:
            self._refuse(b"408 Request Timeout", f"no whole request within {HEAD_SECONDS:g} seconds")
        else:
            self._clear()
            self.transport.close()

    def _wait_for_body(self) -> None:
        self._heard_at = self.loop.time()
        if self.transport.is_closing():
            self._clear()
        elif self._idle_bytes > MOST_HEAD_BYTES:
            self._refuse_head()
        elif self._body_timer is None:
            self._body_timer = self.loop.call_later(PAUSE_SECONDS, self._body_is_late)

    def _body_is_late(self) -> None:
        # While the application does not read, the client cannot send.
        silent = 0.0 if self.flow.read_paused else self.loop.time() - self._heard_at
        if silent < PAUSE_SECONDS:
            self._body_timer = self.loop.call_later(PAUSE_SECONDS - silent, self._body_is_late)
        else:
            self._clear()
            self.transport.close()

    def _refuse_head(self) -> None:
        text = f"more than {MOST_HEAD_BYTES} bytes of header fields"
        self._refuse(b"431 Request Header Fields Too Large", text)

    def _refuse(self, status: bytes, text: str) -> None:
        self._clear()
        if not self._busy:
            body = text.encode()
            head = b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\ncontent-length: %d" % len(body)
            self.transport.write(b"HTTP/1.1 " + status + b"\r\n" + head + b"\r\n\r\n" + body)
        self.transport.close()

    def _clear(self) -> None:
        for timer in (self._head_timer, self._body_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._body_timer = None
