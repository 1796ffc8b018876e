"""A closed loop of HTTP/1.1 requests over plain sockets, light enough that the server is what is measured.

Each connection has one request under way and sends the next when the answer is complete. One thread waits on all of
them; it does no parsing beyond the status and Content-Length. How much of the time it computed comes with the
figures: near 1, the generator was the limit and the rate says nothing about the server.
"""

from __future__ import annotations

import re
import selectors
import socket
import time
from dataclasses import dataclass, field

__all__ = ["Load", "post_request", "run_load"]

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_PATIENCE = 60.0


@dataclass(slots=True)
class Load:
    """What a load saw: seconds of every request, the wall time, and the share of it that the generator computed."""

    latencies: list[float]
    seconds: float
    generator_busy: float

    @property
    def requests_per_second(self) -> float:
        return len(self.latencies) / self.seconds


@dataclass(slots=True)
class _Connection:
    sock: socket.socket
    sent: float = 0.0
    received: bytearray = field(default_factory=bytearray)
    expected: int | None = None
    """Bytes of the whole answer, known once its head has come."""


def post_request(path: str, body: bytes) -> bytes:
    """The bytes of a POST with a JSON body on a connection that stays open."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def run_load(port: int, request: bytes, *, connections: int, seconds: float) -> Load:
    """Send ``request`` again and again for ``seconds``; every answer must be a 200. Raises RuntimeError otherwise."""
    latencies: list[float] = []
    with selectors.DefaultSelector() as selector:
        opened = [
            _Connection(socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE)) for _ in range(connections)
        ]
        try:
            for connection in opened:
                connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(connection.sock, selectors.EVENT_READ, connection)
            computed, begin = time.process_time(), time.perf_counter()
            until = begin + seconds
            for connection in opened:
                _send(connection, request)
            waiting = connections
            while waiting:
                ready = selector.select(_PATIENCE)
                if not ready:
                    raise RuntimeError(f"no answer within {_PATIENCE:.0f} s")
                for key, _ in ready:
                    connection = key.data
                    if not _receive(connection):
                        continue
                    now = time.perf_counter()
                    latencies.append(now - connection.sent)
                    if now < until:
                        _send(connection, request)
                    else:
                        waiting -= 1
            elapsed = time.perf_counter() - begin
            return Load(latencies, elapsed, (time.process_time() - computed) / elapsed)
        finally:
            for connection in opened:
                connection.sock.close()


def _send(connection: _Connection, request: bytes) -> None:
    connection.received.clear()
    connection.expected = None
    connection.sent = time.perf_counter()
    connection.sock.sendall(request)


def _receive(connection: _Connection) -> bool:
    """Take what has come; whether the answer is complete."""
    part = connection.sock.recv(65536)
    received = connection.received
    received += part
    if not part:
        raise RuntimeError(f"the server closed the connection after {bytes(received[:200])!r}")
    if connection.expected is None:
        end = received.find(b"\r\n\r\n")
        if end < 0:
            return False
        found = _LENGTH.search(received, 0, end)
        if not received.startswith(b"HTTP/1.1 200") or found is None:
            raise RuntimeError(f"unexpected answer: {bytes(received[:300])!r}")
        connection.expected = end + 4 + int(found[1])
    return len(received) >= connection.expected
