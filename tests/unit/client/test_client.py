"""The Python clients against canned answers: requests sent, answers read, errors turned into exceptions."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest

from lmcache_kit.client import ControllerClient, InstanceClient
from lmcache_kit.errors import ConflictError, LMCacheKitError, NotFoundError, UnavailableError

Handler = Callable[[httpx.Request], httpx.Response]


async def answering(client: ControllerClient | InstanceClient, handler: Handler) -> None:
    """Let ``handler`` answer instead of the network."""
    await client._http.aclose()
    client._http = httpx.AsyncClient(base_url=client.url, transport=httpx.MockTransport(handler))


@pytest.fixture
async def controller():
    async with ControllerClient("localhost:9000", timeout=5) as client:
        yield client


@pytest.fixture
async def instance():
    async with InstanceClient("http://localhost:8000/", model="m", timeout=5) as client:
        yield client


def test_an_address_without_a_scheme_is_http() -> None:
    assert ControllerClient("localhost:9000").url == "http://localhost:9000"


async def test_operations_send_the_fields_of_the_protocol(controller: ControllerClient) -> None:
    sent: dict[str, object] = {}

    def handler(request: httpx.Request) -> httpx.Response:
        sent[request.url.path] = json.loads(request.content)
        return httpx.Response(200, json={"event_id": "e", "num_tokens": 3})

    await answering(controller, handler)
    await controller.compress("a", "zstd", "LocalCPUBackend", [1, 2, 3])
    await controller.decompress("a", "zstd", "LocalCPUBackend")
    await controller.move(("a", "LocalCPUBackend"), ("b", "LocalDiskBackend"), [1], copy=True)
    await controller.pin("a", "LocalCPUBackend", (1, 2), owner="me", ttl=5)
    job = {"instance_id": "a", "method": "zstd", "location": "LocalCPUBackend"}
    assert sent == {
        "/compress": {**job, "tokens": [1, 2, 3]},
        "/decompress": {**job, "tokens": None},
        "/move": {
            "old_position": ["a", "LocalCPUBackend"],
            "new_position": ["b", "LocalDiskBackend"],
            "tokens": [1],
            "should_copy": True,
        },
        "/pin": {"instance_id": "a", "location": "LocalCPUBackend", "tokens": [1, 2], "owner": "me", "ttl": 5},
    }


@pytest.mark.parametrize(
    ("status", "body", "error", "text"),
    [
        (404, b'{"detail": "unknown instance \'x\'"}', NotFoundError, "unknown instance 'x'"),
        (409, b'{"detail": "busy"}', ConflictError, "busy"),
        (503, b'{"error": {"message": "later"}}', UnavailableError, "later"),
        (500, b"not json at all", LMCacheKitError, "not json at all"),
        (500, b"", LMCacheKitError, "HTTP status 500"),
        (500, b'{"detail": ""}', LMCacheKitError, "HTTP status 500"),
        (404, b'{"error": "plain"}', NotFoundError, "plain"),
    ],
)
async def test_an_error_answer_becomes_the_exception_of_its_status(
    controller: ControllerClient, status: int, body: bytes, error: type[Exception], text: str
) -> None:
    await answering(controller, lambda request: httpx.Response(status, content=body))
    with pytest.raises(error) as caught:
        await controller.lookup([1])
    assert str(caught.value) == text


async def test_an_answer_that_is_not_json_is_an_error(controller: ControllerClient) -> None:
    await answering(controller, lambda request: httpx.Response(200, content=b"<html>"))
    with pytest.raises(LMCacheKitError, match="did not answer with JSON"):
        await controller.lookup([1])


async def test_nobody_listening_is_unavailable_and_not_ready(controller: ControllerClient) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    await answering(controller, refuse)
    assert not await controller.ready()
    with pytest.raises(UnavailableError, match="cannot be reached"):
        await controller.lookup([1])


async def test_waiting_follows_a_job_to_its_end(controller: ControllerClient) -> None:
    states = iter(["queued", "running", "running", "done"])
    await answering(controller, lambda request: httpx.Response(200, json={"status": next(states)}))
    assert (await controller.wait_finished("e"))["status"] == "done"
    assert next(states, None) is None


async def test_waiting_gives_up_at_its_deadline(controller: ControllerClient) -> None:
    await answering(controller, lambda request: httpx.Response(200, json={"status": "running"}))
    with pytest.raises(UnavailableError, match="still running"):
        await controller.wait_finished("e", timeout=0.01)


def events(*chunks: object, done: bool = True) -> bytes:
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return "".join([": a comment\n\n", *lines, "data: [DONE]\n\n" if done else ""]).encode()


async def test_a_streamed_completion_is_put_together(instance: InstanceClient) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    chunks = [
        {"choices": [{"text": ""}]},
        {"choices": [{"text": "Hel"}]},
        {"choices": [{"text": "lo"}]},
        {"choices": [], "usage": usage, "lmcache_kit": {"load_seconds": 0.5}},
    ]
    await answering(instance, lambda request: httpx.Response(200, content=events(*chunks)))
    completion = await instance.stream_complete("hi", max_tokens=2)
    assert completion.text == "Hello"
    assert completion.cached_tokens == 4
    assert completion.raw["lmcache_kit"] == {"load_seconds": 0.5}
    assert 0 <= completion.ttft_seconds <= completion.seconds


async def test_a_stream_that_breaks_off_is_an_error(instance: InstanceClient) -> None:
    await answering(
        instance, lambda request: httpx.Response(200, content=events({"choices": [{"text": "x"}]}, done=False))
    )
    with pytest.raises(UnavailableError, match="broke off"):
        await instance.stream_complete("hi")


async def test_an_error_in_a_stream_is_an_error(instance: InstanceClient) -> None:
    await answering(instance, lambda request: httpx.Response(200, content=events({"error": {"message": "no memory"}})))
    with pytest.raises(LMCacheKitError, match="no memory"):
        await instance.stream_complete("hi")


async def test_a_refused_stream_carries_the_servers_text(instance: InstanceClient) -> None:
    await answering(instance, lambda request: httpx.Response(404, json={"error": {"message": "no such model"}}))
    with pytest.raises(NotFoundError, match="no such model"):
        await instance.stream_complete("hi")


async def test_the_first_served_model_is_asked_for_when_none_is_named() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "first"}, {"id": "second"}]})
        return httpx.Response(200, json={"tokens": [1], "echo": json.loads(request.content)["model"]})

    async with InstanceClient("http://localhost:8000") as client:
        await answering(client, handler)
        assert await client.tokenize("x") == [1]
        assert await client.model() == "first"
