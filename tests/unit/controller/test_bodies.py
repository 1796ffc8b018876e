"""Bodies of HTTP requests as they come in pieces: all of them, too much of them, and no end of them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from lmcache_kit.controller.config import ControllerConfig
from lmcache_kit.controller.http import make_app
from lmcache_kit.controller.metrics import ControllerMetrics
from lmcache_kit.controller.routes import Route
from lmcache_kit.controller.schemas import LookupResponse


class Words(msgspec.Struct):
    words: list[str]


@pytest.fixture
def post(rig):
    """Send the messages of one request straight to the application; its status and body."""

    async def handle(request: Words, query: dict[str, str]) -> Words:
        return Words(request.words[::-1])

    route = Route(method="POST", path="/turn", summary="turns", handler=handle, request=Words, response=LookupResponse)
    app = make_app(ControllerConfig(max_body_bytes=64), [route], ControllerMetrics(rig.core))

    async def send_all(*messages: dict[str, Any], headers: tuple[tuple[bytes, bytes], ...] = ()) -> tuple[int, Any]:
        left, answered = list(messages), []
        scope = {"type": "http", "method": "POST", "path": "/turn", "query_string": b"", "headers": list(headers)}

        async def receive() -> dict[str, Any]:
            return left.pop(0)

        async def send(message: dict[str, Any]) -> None:
            answered.append(message)

        await app(scope, receive, send)
        start, body = answered
        return start["status"], json.loads(body["body"])

    return send_all


def piece(body: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


WHOLE = b'{"words": ["a", "b"]}'


async def test_a_body_may_come_in_any_pieces(post):
    for cut in range(len(WHOLE)):
        messages = piece(WHOLE[:cut], more=True), piece(WHOLE[cut:])
        assert await post(*messages) == (200, {"words": ["b", "a"]})
    assert await post(*(piece(WHOLE[i : i + 1], more=True) for i in range(len(WHOLE))), piece(b"")) == (
        200,
        {"words": ["b", "a"]},
    )


@pytest.mark.parametrize(
    "messages",
    [
        [piece(b" " * 65)],
        [piece(b" " * 60, more=True), piece(b" " * 5)],
        [piece(b" " * 60, more=True), piece(b" " * 5, more=True), piece(b" " * 500)],
        [piece(b" ", more=True)] * 65 + [piece(b"")],
    ],
    ids=["at once", "with the last piece", "with more to come", "byte by byte"],
)
async def test_more_than_the_limit_is_refused_though_no_length_was_given(post, messages):
    status, answer = await post(*messages)
    assert status == 413
    assert "--max-body-size" in answer["detail"]


async def test_just_the_limit_is_taken(post):
    assert (await post(piece(WHOLE.ljust(64))))[0] == 200
    assert (await post(piece(WHOLE, more=True), piece(b" " * (64 - len(WHOLE)))))[0] == 200


@pytest.mark.parametrize("expects", [False, True])
async def test_a_length_beyond_the_limit_is_refused_before_the_body(post, expects):
    headers = ((b"content-length", b"65"), *([(b"expect", b"100-continue")] if expects else []))
    # Who waits for leave to send it has sent nothing that would have to be read first.
    messages = [] if expects else [piece(b" " * 65)]
    assert (await post(*messages, headers=headers))[0] == 413


async def test_a_client_that_leaves_in_the_middle_is_no_bug(post, caplog):
    status, answer = await post(piece(WHOLE[:5], more=True), {"type": "http.disconnect"})
    assert (status, caplog.records) == (400, [])
    assert "left" in answer["detail"]
