"""Bytes that no client sends, against the real processes: each is refused or answered, and memory comes back."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
from typing import Any

import httpx
import pytest

MEGABYTE = 2**20
LARGEST_GROWTH = 96 * MEGABYTE  # garbage collection and malloc keep some; what is sent is many times that
HEAD = b"Host: h\r\nConnection: close\r\n"
both = pytest.mark.parametrize("which", ["controller", "instance"])
POST = {"controller": b"/lookup", "instance": b"/tokenize"}
BODY = {"controller": b'{"tokens": [1]}', "instance": b'{"prompt": "a"}'}


@pytest.fixture
def process(surface: Any, which: str) -> Any:
    """The process; it must serve after the test and have logged no traceback."""
    chosen = surface.controller if which == "controller" else surface.instances[0]
    yield chosen
    chosen.still_serves()
    assert "Traceback" not in chosen.text(), chosen.text()[-5000:]


def statuses(answer: bytes) -> list[int]:
    """Of all answers in these bytes."""
    return [int(number) for number in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answer)]


def post(which: str, body: bytes, *headers: bytes) -> bytes:
    lines = b"".join(header + b"\r\n" for header in (b"Content-Length: %d" % len(body), *headers))
    return b"POST " + POST[which] + b" HTTP/1.1\r\n" + HEAD + lines + b"\r\n" + body


NO_REQUESTS = [
    b"\x00" * 100,
    b"\xff" * 100,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / FTP/1.1\r\n\r\n",
    b"BREW /health HTTP/1.1\r\n" + HEAD + b"\r\n",
    b"GET /health HTTP/1.1\r\n: nameless\r\n\r\n",
    b"GET /health HTTP/1.1\r\nA b: c\r\n\r\n",
    b"GET /health HTTP/1.1\r\nA: \x00\r\n\r\n",
    b"GET /h\xc3\xa4lth HTTP/1.1\r\n" + HEAD + b"\r\n",
    b"CONNECT h:80 HTTP/1.1\r\n" + HEAD + b"\r\n",
    b"POST /lookup HTTP/1.1\r\nContent-Length: -1\r\n\r\n{}",
    b"POST /lookup HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n{}",
    b"POST /lookup HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    b"POST /lookup HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"POST /lookup HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /lookup HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    b"POST /lookup HTTP/1.1\r\nTransfer-Encoding: gzip, chunked, gzip\r\n\r\n",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n" + HEAD + b"\r\n",
]


@both
@pytest.mark.parametrize("data", NO_REQUESTS, ids=lambda data: repr(data[:40]))
def test_what_is_no_request_is_refused(process: Any, which: str, data: bytes) -> None:
    found = statuses(process.exchange(data))
    assert all(400 <= status < 500 for status in found), found
    assert len(found) <= 1


STRANGE = [
    (b"GET /nowhere HTTP/1.1\r\nHost: [\r\nConnection: close\r\n\r\n", 404),
    (b"GET /nowhere HTTP/1.1\r\nHost: \xff\xfe\r\nConnection: close\r\n\r\n", 404),
    (b"PUT /health HTTP/1.1\r\nHost: [::1\r\nConnection: close\r\n\r\n", 405),
    (b"GET //other.example/%2f.. HTTP/1.1\r\n" + HEAD + b"\r\n", 404),
    (b"GET /%ff%fe%00 HTTP/1.1\r\n" + HEAD + b"\r\n", 404),
    (b"GET /..%2f..%2fetc/passwd HTTP/1.1\r\n" + HEAD + b"\r\n", 404),
    (b"OPTIONS * HTTP/1.1\r\n" + HEAD + b"\r\n", 404),
    (b"HEAD /health HTTP/1.1\r\n" + HEAD + b"\r\n", 200),
    (b"GET http://other.example/health HTTP/1.1\r\n" + HEAD + b"\r\n", 200),
    (b"GET /health HTTP/1.0\r\n\r\n", 200),
    (b"GET /health?" + b"a=b&" * 10_000 + b" HTTP/1.1\r\n" + HEAD + b"\r\n", 200),
    (b"GET /health?%=%%&&=&;[]#x HTTP/1.1\r\n" + HEAD + b"\r\n", 200),
    (b"GET /health HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\nHost: h\r\n\r\n", 200),
    (b"GET /health HTTP/1.1\r\n" + HEAD + b"Authorization: Bearer \xff\r\nCookie: " + b"\xfe" * 99 + b"\r\n\r\n", 200),
]


@both
@pytest.mark.parametrize(("data", "status"), STRANGE, ids=lambda value: repr(value[:40]) if value is bytes else None)
def test_a_strange_request_gets_the_answer_of_a_plain_one(process: Any, which: str, data: bytes, status: int) -> None:
    answer = process.exchange(data, end=False)
    assert statuses(answer) == [status]
    if status >= 400:
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["detail"]


@both
def test_the_type_that_a_body_claims_changes_nothing(process: Any, which: str) -> None:
    """curl says that a body is a form unless told otherwise; LMCache's examples do not always tell it."""
    for kind in (b"text/plain", b"application/x-www-form-urlencoded", b"application/xml", b"\xff", b""):
        assert statuses(process.exchange(post(which, BODY[which], b"Content-Type: " + kind), end=False)) == [200]
    # But a body that is packed is no JSON.
    answer = process.exchange(post(which, b"\x1f\x8b\x08\x00" + bytes(20), b"Content-Encoding: gzip"), end=False)
    assert statuses(answer) == [400]


@both
@pytest.mark.parametrize(
    "body",
    [
        b"[" * MEGABYTE,
        b'{"x": ' + b"[" * (MEGABYTE // 2),
        b'{"tokens": [1], "prompt": "a", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"a":' * 100_000,
        b'{"tokens": [NaN], "prompt": NaN}',
        b'{"tokens": [Infinity], "prompt": -Infinity}',
        b'{"tokens": [1e400], "prompt": 1e400}',
        b'{"tokens": [' + b"9" * 100_000 + b'], "prompt": [' + b"9" * 100_000 + b"]}",
        b'{"tokens": ["\\ud800"], "prompt": "\\ud800"}',
        b'{"tokens": "\xff", "prompt": "\xff"}',
        b'\xef\xbb\xbf{"tokens": true, "prompt": true}',
        b'{"tokens": "' + b"x" * (MEGABYTE // 2) + b'", "prompt": 1}',
        b"\x00" * 1000,
        b"nul",
        b"",
    ],
    ids=lambda body: repr(body[:30]),
)
def test_a_body_that_cannot_be_read_is_a_400(process: Any, which: str, body: bytes) -> None:
    answer = process.exchange(post(which, body), end=False)
    assert statuses(answer) == [400]
    detail = json.loads(answer.partition(b"\r\n\r\n")[2])["detail"]
    assert len(detail) < 2000


def flood(process: Any, start: bytes, drop: bytes, most: int) -> tuple[int, bytes]:
    """Send ``drop`` again and again until the process closes or ``most`` bytes are sent: how many, and the answer."""
    sent, answer = 0, b""
    with process.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(start)
            while sent < most:
                connection.sendall(drop)
                sent += len(drop)
        connection.settimeout(1)
        with contextlib.suppress(ConnectionError, TimeoutError):
            while part := connection.recv(65536):
                answer += part
    return sent, answer


@both
@pytest.mark.parametrize(
    ("start", "drop"),
    [
        (b"GET /", b"a" * 65536),
        (b"GET /health HTTP/1.1\r\nX: ", b"a" * 65536),
        (b"GET /health HTTP/1.1\r\n", b"X: y\r\n" * 10_000),
        (b"POST {} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"a" * 65536),
    ],
    ids=["path", "field", "fields", "trailer"],
)
def test_an_endless_head_is_cut_off(process: Any, which: str, start: bytes, drop: bytes) -> None:
    before = process.resident()
    sent, answer = flood(process, start.replace(b"{}", POST[which]), drop, 256 * MEGABYTE)
    # What was under way in buffers when it closed counts as sent.
    assert sent < 64 * MEGABYTE
    assert all(400 <= status < 500 for status in statuses(answer))
    assert process.resident() - before < LARGEST_GROWTH


@both
@pytest.mark.parametrize("chunked", [True, False])
def test_an_endless_body_is_refused_without_being_kept(process: Any, which: str, chunked: bool) -> None:
    before = process.resident()
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % (600 * MEGABYTE)
    start = b"POST " + POST[which] + b" HTTP/1.1\r\nHost: h\r\n" + length + b"\r\n\r\n"
    drop = b"10000\r\n" + b"x" * 65536 + b"\r\n" if chunked else b"x" * 65536
    _, answer = flood(process, start, drop, 160 * MEGABYTE)
    assert statuses(answer) in ([413], [])  # none where the connection was reset before it was read
    assert process.resident() - before < LARGEST_GROWTH


@both
def test_pipelined_requests_are_answered_in_order_up_to_the_garbage(process: Any, which: str) -> None:
    request = b"POST " + POST[which] + b" HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s"
    good = request % (len(BODY[which]), BODY[which])
    bad = request % (2, b"{}")
    answer = process.exchange(
        good * 50 + bad + good * 50 + bad.replace(b"h\r\n", b"h\r\nConnection: close\r\n"), end=False
    )
    assert statuses(answer) == [200] * 50 + [400] + [200] * 50 + [400]
    # Garbage after requests: none of their answers is wrong, and the last one is a refusal.
    found = statuses(process.exchange(good * 20 + b"\x00garbage\r\n\r\n" + good * 20))
    assert set(found) <= {200, 400}
    assert len(found) <= 21


@both
def test_answers_that_nobody_reads_are_not_piled_up(process: Any, which: str) -> None:
    before = process.resident()
    with process.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(1)
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(2000):
                connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: h\r\n\r\n" * 100)
        process.still_serves()
        assert process.resident() - before < LARGEST_GROWTH


@both
def test_connections_that_are_cut_leave_nothing_behind(process: Any, which: str, surface: Any) -> None:
    whole = post(which, BODY[which])
    before = process.open_files()
    for number in range(400):
        connection = process.connect()
        connection.sendall(whole[: number * len(whole) // 400])
        if number % 2:  # a reset instead of an end
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    surface.eventually(lambda: process.open_files() <= before + 4, "the descriptors")


@both
def test_many_halves_at_once_do_not_keep_others_waiting(process: Any, which: str) -> None:
    half = post(which, BODY[which])[:-4]
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(process.connect()).sendall(half)
        assert httpx.get(f"{process.url}/health", timeout=60, trust_env=False).status_code == 200
        assert statuses(process.exchange(post(which, BODY[which]), end=False)) == [200]


def test_the_other_sockets_of_an_instance_survive_bytes_that_are_no_protocol(surface: Any) -> None:
    instance = surface.instances[0]
    facts = httpx.get(f"{instance.url}/health", timeout=60, trust_env=False).json()
    ports = [facts["worker"]["control_port"], int(facts["peer_url"].rpartition(":")[2])]
    ports += [port for name, port in surface.controller.ports.items() if name != "http"]
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
    ready = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03REQ"
    huge = b"\x02" + b"\x7f" + b"\xff" * 7  # a frame of 2**63 bytes
    for port in ports:
        for data in (
            b"",
            b"\x00" * 500,
            b"GET / HTTP/1.1\r\n\r\n",
            greeting,
            greeting + ready,
            greeting + ready + huge,
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(data + b"\xfe" * 100)
    surface.fill()
    for process in surface.all:
        process.still_serves()
