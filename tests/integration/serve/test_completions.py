"""``/v1/completions`` over HTTP in this process."""

from __future__ import annotations

import json
from typing import Any

PROMPT = "It was a bright cold day in April, and the clocks were striking thirteen. " * 4


async def complete(served: Any, **body: Any) -> dict[str, Any]:
    answer = await served.http.post("/v1/completions", json={"prompt": PROMPT, "temperature": 0, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def events(served: Any, **body: Any) -> list[Any]:
    body = {"prompt": PROMPT, "temperature": 0, "stream": True, **body}
    async with served.http.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line async for line in answer.aiter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


async def test_the_second_completion_of_a_prompt_is_cached_up_to_its_last_token(serve, make_engine) -> None:
    served = await serve(make_engine())
    first, second = await complete(served, max_tokens=20), await complete(served, max_tokens=20)
    length = len(PROMPT) + 1  # one token per byte, and the beginning
    assert first["usage"] == {
        "prompt_tokens": length,
        "completion_tokens": 20,
        "total_tokens": length + 20,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert first["lmcache_kit"]["stored_tokens"] == length
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == length - 1
    assert second["lmcache_kit"]["cached_tokens_by_location"] == {"LocalCPUBackend": length - 1}
    assert second["lmcache_kit"]["codecs"] == {"naive": 1}
    assert second["lmcache_kit"]["stored_tokens"] == 0
    assert second["choices"] == first["choices"]
    assert first["choices"][0]["finish_reason"] == "length"
    assert len(first["choices"][0]["text"]) == 20
    assert first["object"] == "text_completion"
    assert first["id"] != second["id"]


async def test_stream(serve, make_engine) -> None:
    served = await serve(make_engine())
    stream = await events(served, max_tokens=5, stream_options={"include_usage": True})
    print(stream)
