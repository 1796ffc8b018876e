"""Who works when: fairness, an event loop that never waits, clients that leave, engines that break."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from lmcache_kit.contracts import SamplingParams
from lmcache_kit.errors import UnavailableError
from lmcache_kit.instance.http.completion import GenerationRequest

DEADLINE = 30


async def post(served: Any, **body: Any) -> Any:
    return await served.http.post("/v1/completions", json={"prompt": "abc", "temperature": 0, **body})


async def until(condition: Any) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110  (the engine's thread changes it, there is no event to wait for)
            await asyncio.sleep(0.002)


async def test_the_engine_is_called_from_one_thread_that_is_not_the_loops(serve, scripted) -> None:
    served = await serve(scripted(b"xyz"))
    await asyncio.gather(*(post(served, max_tokens=5) for _ in range(6)))
    assert len(served.engine.threads) == 1
    assert threading.get_ident() not in served.engine.threads
    assert served.engine.open == 0


async def test_requests_start_in_the_order_they_came(serve, scripted) -> None:
    served = await serve(scripted(b"xyz"), max_num_seqs=1)
    done: list[int] = []

    async def one(number: int) -> None:
        await post(served, max_tokens=3)
        done.append(number)

    tasks = []
    for number in range(8):
        tasks.append(asyncio.create_task(one(number)))
        await asyncio.sleep(0.01)
    await asyncio.gather(*tasks)
    assert done == list(range(8))
    starts = [number for name, number in served.engine.calls if name in ("start", "close")]
    assert starts == [number for number in range(8) for _ in range(2)]  # one at a time, from start to close


async def test_requests_under_way_take_turns(serve, scripted) -> None:
    served = await serve(scripted(b"xyz"), max_num_seqs=2)
    await asyncio.gather(*(post(served, max_tokens=40) for _ in range(2)))
    decodes = [number for name, number in served.engine.calls if name == "decode"]
    middle = decodes[10:-10]
    # Neither waits for the other to finish: in any ten steps in the middle, both made progress.
    assert all(set(middle[at : at + 10]) == {0, 1} for at in range(len(middle) - 10))


async def test_the_loop_goes_on_while_the_engine_computes(serve, scripted) -> None:
    served = await serve(scripted(b"xyz"))
    served.engine.gate.clear()
    request = asyncio.create_task(post(served, max_tokens=3))
    await until(served.engine.entered.is_set)
    for path in ("/health", "/metrics", "/v1/models"):
        assert (await served.http.get(path)).status_code == 200
    metrics = (await served.http.get("/metrics")).text
    assert 'vllm:num_requests_running{model_name="model-a"} 1.0' in metrics
    assert not request.done()
    served.engine.gate.set()
    assert (await request).json()["choices"][0]["text"] == "xyz"


class Client:
    """One request to the application without an HTTP library, so that it can leave at any moment."""

    def __init__(self, served: Any, **body: Any) -> None:
        self.app = served.app.app
        self.body = json.dumps({"prompt": "abc", "temperature": 0, **body}).encode()
        self.sent: list[dict[str, Any]] = []
        self.gone = asyncio.Event()
        self._given = False

    async def receive(self) -> dict[str, Any]:
        if not self._given:
            self._given = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        await asyncio.sleep(0)

    def run(self) -> asyncio.Task[None]:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "path": "/v1/completions",
            "raw_path": b"/v1/completions",
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": [],
            "client": None,
            "server": ("instance", 80),
        }
        return asyncio.create_task(self.app(scope, self.receive, self.send))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_its_decoding(serve, scripted, stream: bool) -> None:
    served = await serve(scripted(b"xyz"))
    client = Client(served, max_tokens=4000, stream=stream)
    running = client.run()
    await until(lambda: len(served.engine.calls) > 20)
    client.gone.set()
    async with asyncio.timeout(DEADLINE):
        await running
    await until(lambda: served.engine.open == 0)
    steps = len(served.engine.calls)
    assert steps < 3000
    await asyncio.sleep(0.05)
    assert len(served.engine.calls) == steps
    assert 'finished_reason="abort"' in (await served.http.get("/metrics")).text
    # What was computed is not lost, and the place is free for the next.
    assert len(served.store.chunks) == 1
    assert (await post(served, max_tokens=3)).status_code == 200


async def test_a_client_that_leaves_the_queue_is_forgotten(serve, scripted) -> None:
    served = await serve(scripted(b"xyz"), max_num_seqs=1)
    served.engine.gate.clear()
    first = asyncio.create_task(post(served, max_tokens=3))
    await until(served.engine.entered.is_set)
    # A prompt of tokens: a text would wait for the tokenizer, which shares the engine's thread.
    waiting = Client(served, prompt=[1, 2], max_tokens=3)
    running = waiting.run()
    await asyncio.sleep(0.02)
    assert 'vllm:num_requests_waiting{model_name="model-a"} 1.0' in (await served.http.get("/metrics")).text
    waiting.gone.set()
    async with asyncio.timeout(DEADLINE):
        await running
    assert 'vllm:num_requests_waiting{model_name="model-a"} 0.0' in (await served.http.get("/metrics")).text
    served.engine.gate.set()
    assert (await first).status_code == 200
    assert (await post(served, max_tokens=3)).status_code == 200
    assert max(number for _, number in served.engine.calls) == 1


async def test_a_broken_engine_is_an_error_for_its_request_alone(serve, scripted) -> None:
    served = await serve(scripted(None, b"xyz"))
    broken = await post(served, max_tokens=3)
    assert broken.status_code == 500
    assert broken.json()["error"]["message"] == "RuntimeError: the engine is broken"
    assert (await post(served, max_tokens=3)).json()["choices"][0]["text"] == "xyz"
    assert served.engine.open == 0
    assert 'finished_reason="error"' in (await served.http.get("/metrics")).text


async def test_a_broken_engine_in_a_stream_is_an_event(serve, scripted, caplog) -> None:
    served = await serve(scripted(None))
    answer = await post(served, max_tokens=3, stream=True)
    lines = [line for line in answer.text.splitlines() if line]
    assert json.loads(lines[0][6:])["error"]["message"] == "RuntimeError: the engine is broken"
    assert lines[1:] == ["data: [DONE]"]
    assert "a completion failed" in caplog.text


async def test_closing_waits_for_the_step_and_then_refuses(serve, scripted) -> None:
    served = await serve(scripted(b"xyz"))
    served.engine.gate.clear()
    running = asyncio.create_task(post(served, max_tokens=100))
    await until(served.engine.entered.is_set)
    closing = asyncio.create_task(served.generator.close())
    await asyncio.sleep(0.02)
    assert not closing.done()
    served.engine.gate.set()
    await closing
    refused = await running
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    with pytest.raises(UnavailableError):
        await served.generator.tokenize("abc")
    await served.generator.close()


async def test_the_iterator_may_be_closed_early(serve, scripted) -> None:
    served = await serve(scripted(b"xyz"))
    request = GenerationRequest(tokens=[1, 2, 3], max_tokens=1000, sampling=SamplingParams(temperature=0))
    pieces = served.generator.generate(served.generator.check(request))
    assert (await anext(pieces)).text == "x"
    await pieces.aclose()
    await until(lambda: served.engine.open == 0)
    untouched = served.generator.generate(request)
    await untouched.aclose()
    assert max(number for _, number in served.engine.calls) == 0
