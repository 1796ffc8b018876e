"""Clients that send slowly, or nothing: a server of our protocol on a real socket, with its limits made short."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvicorn

from lmcache_kit import http_limits

SHORT = 0.2
LONG = 5 * SHORT


class App:
    """Answers with the length of the body; ``/slow`` thinks first, ``/blind`` does not read for a while."""

    def __init__(self) -> None:
        self.events: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] in ("/slow", "/blind"):
            await asyncio.sleep(LONG)
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.events.append("disconnect")
                return
            size += len(message["body"])
            more = message["more_body"]
        self.events.append(f"{scope['path']} {size}")
        body = str(size).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


class Server(uvicorn.Server):
    """One that leaves signals to pytest."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def rest(self) -> bytes:
        """What comes until the server closes."""
        async with asyncio.timeout(60):
            with contextlib.suppress(ConnectionError):
                return await self.reader.read()
        return b""

    async def answer(self) -> bytes:
        """The body of one answer."""
        async with asyncio.timeout(60):
            head = await self.reader.readuntil(b"\r\n\r\n")
            size = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            return await self.reader.readexactly(size)


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
async def connect(app: App, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[[], Any]]:
    monkeypatch.setattr(http_limits, "HEAD_SECONDS", SHORT)
    monkeypatch.setattr(http_limits, "PAUSE_SECONDS", SHORT)
    config = uvicorn.Config(
        app,
        port=0,
        http=http_limits.LimitedHttp,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_keep_alive=60,
    )
    server = Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  (uvicorn has no event for it)
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    clients: list[Client] = []

    async def connected() -> Client:
        clients.append(Client(*await asyncio.open_connection("127.0.0.1", port)))
        return clients[-1]

    yield connected
    for client in clients:
        client.writer.close()
        with contextlib.suppress(ConnectionError):
            await client.writer.wait_closed()
    server.should_exit = True
    await serving


@pytest.mark.parametrize(
    "sent", [b"", b"\r\n", b"G", b"GET / HTTP/1.1\r\nHost: h\r\n", b"POST / HTTP/1.1\r\nContent-Le"]
)
async def test_a_request_that_never_comes_is_not_waited_for(connect: Any, sent: bytes) -> None:
    client = await connect()
    if sent:
        await client.send(sent)
    answer = await client.rest()
    assert answer.startswith(b"HTTP/1.1 408 ") if sent else answer == b""


async def test_a_head_in_drops_has_one_deadline_for_all_of_it(connect: Any, app: App) -> None:
    client = await connect()

    async def drops() -> None:
        await client.send(b"GET / HTTP/1.1\r\n")
        while True:
            await client.send(b"A: b\r\n")
            await asyncio.sleep(SHORT / 10)

    dropping = asyncio.create_task(drops())
    answer = await client.rest()
    dropping.cancel()
    await asyncio.gather(dropping, return_exceptions=True)
    assert answer[:13] in (b"HTTP/1.1 408 ", b"")  # nothing, where a drop met the closed connection first
    assert app.events == []


async def test_the_second_request_of_a_connection_has_the_same_deadline(connect: Any) -> None:
    client = await connect()
    for late in (b"GET / HT", b"\r\n"):
        client = await connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert await client.answer() == b"0"
        await asyncio.sleep(2 * SHORT)  # between two requests it may rest
        await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert await client.answer() == b"0"
        await client.send(late)
        assert (await client.rest()).startswith(b"HTTP/1.1 408 ")


async def test_a_body_may_be_slow_but_not_stop(connect: Any, app: App) -> None:
    client = await connect()
    await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 20\r\n\r\n")
    for _ in range(20):
        await client.send(b"x")
        await asyncio.sleep(SHORT / 5)
    assert await client.answer() == b"20"
    await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 20\r\n\r\nxxx")
    assert await client.rest() == b""
    assert app.events == ["/ 20", "disconnect"]


async def test_an_application_that_does_not_read_is_not_its_clients_fault(connect: Any, app: App) -> None:
    client = await connect()
    size = 8 * 2**20
    sending = asyncio.create_task(
        client.send(b"POST /blind HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
    )
    assert await client.answer() == str(size).encode()
    await sending
    assert app.events == [f"/blind {size}"]


@pytest.mark.parametrize("more", [b"", b"\r\n", b"GET /ne"])
async def test_what_comes_after_a_request_does_not_cut_its_answer(connect: Any, app: App, more: bytes) -> None:
    client = await connect()
    await client.send(b"POST /slow HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc" + more)
    assert await client.answer() == b"3"
    if more.strip():  # after line ends alone it is a connection that rests
        assert (await client.rest()).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("start", "drop"),
    [
        (b"GET /", b"a" * 1024),
        (b"GET / HTTP/1.1\r\nX: ", b"a" * 1024),
        (b"GET / HTTP/1.1\r\nX", b"a" * 1024),
        (b"GET / HTTP/1.1\r\n", b"X: a\r\n" * 200),
        (b"", b"\r\n" * 500),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;x=", b"a" * 1024),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: a\r\n" * 200),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"a" * 1024),
    ],
)
async def test_a_head_without_an_end_is_cut_off(connect: Any, start: bytes, drop: bytes) -> None:
    client = await connect()
    sent = 0
    with contextlib.suppress(ConnectionError):
        await client.send(start)
        while sent < 4 * 2**20 and not client.reader.at_eof():
            await client.send(drop)
            sent += len(drop)
            await asyncio.sleep(0)
    answer = await client.rest()
    # What llhttp refuses by itself is a 400; a request that the application reads already is only cut.
    assert answer[:13] in (b"HTTP/1.1 431 ", b"HTTP/1.1 400 ", b"")
    assert sent < 4 * 2**20


async def test_a_long_head_and_many_requests_at_once_are_served(connect: Any) -> None:
    client = await connect()
    head = b"".join(b"X-%d: %s\r\n" % (number, b"v" * 500) for number in range(60))
    await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n" + head + b"\r\n")
    assert await client.answer() == b"0"
    await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nab" * 3000)
    assert [await client.answer() for _ in range(3000)] == [b"2"] * 3000
