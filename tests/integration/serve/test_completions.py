"""``/v1/completions`` over HTTP, in this process."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from lmcache_kit.errors import UnavailableError

PROMPT = "It was a bright cold day in April, and the clocks were striking thirteen. " * 4


async def complete(served: Any, **body: Any) -> dict[str, Any]:
    answer = await served.http.post("/v1/completions", json={"prompt": PROMPT, "temperature": 0, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def text(served: Any, **body: Any) -> str:
    return (await complete(served, **body))["choices"][0]["text"]


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


async def test_kv_is_stored_when_the_answer_arrives(serve, make_engine) -> None:
    served = await serve(make_engine())
    tokens = served.engine.tokenize(PROMPT)
    await complete(served, max_tokens=1)
    assert tuple(tokens) in served.store.chunks
    await events(served, prompt="another", max_tokens=1)
    assert tuple(served.engine.tokenize("another")) in served.store.chunks


async def test_a_longer_prompt_reuses_whole_chunks_and_stores_the_rest(serve, make_engine) -> None:
    served = await serve(make_engine())
    await complete(served, max_tokens=2)
    longer = await complete(served, prompt=PROMPT + "And then.", max_tokens=2)
    whole = (len(PROMPT) + 1) // 64 * 64
    assert longer["usage"]["prompt_tokens_details"]["cached_tokens"] == whole
    assert longer["lmcache_kit"]["stored_tokens"] == len(PROMPT) + 1 + 9 - whole
    cold = await serve(make_engine())
    assert longer["choices"] == (await complete(cold, prompt=PROMPT + "And then.", max_tokens=2))["choices"]


async def test_damaged_kv_would_be_seen_in_the_text(serve, make_engine) -> None:
    served = await serve(make_engine())
    first = await text(served)
    chunk = next(iter(served.store.chunks.values()))
    chunk.data.reshape(-1).view(np.uint8)[7] ^= 1
    assert await text(served) != first


async def test_tokens_as_prompt_and_lists_of_one(serve, make_engine) -> None:
    served = await serve(make_engine())
    tokens = served.engine.tokenize(PROMPT)
    answers = [await text(served, prompt=prompt) for prompt in (PROMPT, tokens, [PROMPT], [tokens])]
    assert len(set(answers)) == 1


async def test_a_stream_is_the_answer_in_pieces(serve, make_engine) -> None:
    served = await serve(make_engine())
    whole = await complete(served, max_tokens=12)
    stream = await events(served, max_tokens=12)
    assert len(stream) == 12
    assert "".join(event["choices"][0]["text"] for event in stream) == whole["choices"][0]["text"]
    assert [event["choices"][0]["finish_reason"] for event in stream] == [None] * 11 + ["length"]
    assert len({event["id"] for event in stream}) == 1
    assert all("usage" not in event for event in stream)
    assert stream[-1]["lmcache_kit"]["cached_tokens_by_location"] == {"LocalCPUBackend": len(PROMPT)}
    assert all("lmcache_kit" not in event for event in stream[:-1])


async def test_a_stream_with_its_usage(serve, make_engine) -> None:
    served = await serve(make_engine())
    stream = await events(served, max_tokens=3, stream_options={"include_usage": True})
    assert len(stream) == 4
    assert stream[-1]["choices"] == []
    assert stream[-1]["usage"]["completion_tokens"] == 3
    assert stream[-1]["lmcache_kit"]["stored_tokens"] == len(PROMPT) + 1
    assert "lmcache_kit" not in stream[-2]


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_and_token_ids(serve, make_engine, stream: bool) -> None:
    served = await serve(make_engine())
    body = {"prompt": "Hello", "max_tokens": 4, "echo": True, "return_token_ids": True}
    if stream:
        pieces = [event["choices"][0] for event in await events(served, **body)]
    else:
        pieces = (await complete(served, **body))["choices"]
    tokens = [token for piece in pieces for token in piece["token_ids"]]
    assert "".join(piece["text"] for piece in pieces) == "Hello" + served.engine.detokenize(tokens)
    assert len(tokens) == 4
    assert pieces[0]["prompt_token_ids"] == served.engine.tokenize("Hello")
    assert all(piece["prompt_token_ids"] is None for piece in pieces[1:])


@pytest.mark.parametrize("stream", [False, True])
async def test_stop_strings_end_the_text_before_them(serve, scripted, stream: bool) -> None:
    served = await serve(scripted(b"fish and chips, "))
    body = {"max_tokens": 100, "stop": ["chap", "chips"]}
    if stream:
        pieces = [event["choices"][0] for event in await events(served, **body)]
    else:
        pieces = (await complete(served, **body))["choices"]
    assert "".join(piece["text"] for piece in pieces) == "fish and "
    assert pieces[-1]["finish_reason"] == "stop"
    assert pieces[-1]["stop_reason"] == "chips"


async def test_the_end_token_ends_the_text_unless_it_is_ignored(serve, scripted) -> None:
    served = await serve(scripted(b"abcdef", eos_after=3))
    answer = await complete(served, max_tokens=9)
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("abc", "stop")
    assert answer["usage"]["completion_tokens"] == 4
    answer = await complete(served, max_tokens=9, ignore_eos=True)
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("abcefabc", "length")


async def test_the_end_token_comes_first(serve, scripted) -> None:
    served = await serve(scripted(b"abc", eos_after=0))
    answer = await complete(served, max_tokens=9)
    assert (answer["choices"][0]["text"], answer["usage"]["completion_tokens"]) == ("", 1)
    assert len(await events(served, max_tokens=9)) == 1


async def test_characters_of_several_tokens_arrive_whole(serve, scripted) -> None:
    served = await serve(scripted("漢字🙂".encode()))
    stream = await events(served, max_tokens=10)
    assert [event["choices"][0]["text"] for event in stream if event["choices"][0]["text"]] == ["漢", "字", "🙂"]
    assert await text(served, max_tokens=4) == "漢�"


async def test_the_context_may_be_filled_to_its_end(serve, make_engine) -> None:
    served = await serve(make_engine(max_model_len=32))
    assert len(await text(served, prompt=[1] * 20, max_tokens=12)) == 12
    answer = await served.http.post("/v1/completions", json={"prompt": [1] * 20, "max_tokens": 13})
    assert answer.status_code == 400
    assert "maximum context length is 32" in answer.json()["error"]["message"]


async def test_sampling_follows_the_seed(serve, make_engine) -> None:
    served = await serve(make_engine())
    body = {"temperature": 0.8, "max_tokens": 16}
    assert await text(served, seed=1, **body) == await text(served, seed=1, **body)
    assert await text(served, seed=1, **body) != await text(served, seed=2, **body)


async def test_output_is_saved_too_when_asked_for(serve, make_engine) -> None:
    served = await serve(make_engine(), save_decode_cache=True)
    first = await complete(served, max_tokens=100, return_token_ids=True)
    known = len(PROMPT) + 1 + 99  # the last token was never computed on
    # What is stored anew: the prompt, then from its last chunk boundary on the chunks that hold output tokens.
    assert first["lmcache_kit"]["stored_tokens"] == len(PROMPT) + 1 + known - (len(PROMPT) + 1) // 64 * 64
    turn = served.engine.tokenize(PROMPT) + first["choices"][0]["token_ids"]
    second = await complete(served, prompt=[*turn, 32, 33], max_tokens=8)
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == known // 64 * 64
    cold = await serve(make_engine())
    assert second["choices"][0]["text"] == await text(cold, prompt=[*turn, 32, 33], max_tokens=8)


@pytest.mark.parametrize("failure", [UnavailableError("the disk went away"), RuntimeError("a bug in a plugin")])
async def test_a_store_that_fails_costs_the_cache_and_never_the_answer(serve, make_engine, failure, caplog) -> None:
    served = await serve(make_engine())
    good = await text(served)
    served.store.failure = failure
    answer = await complete(served)
    assert answer["choices"][0]["text"] == good
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert answer["lmcache_kit"]["stored_tokens"] == 0
    assert "no cached prefix is used" in caplog.text
    assert "not stored" in caplog.text


async def test_many_at_once_get_what_each_gets_alone(serve, make_engine) -> None:
    alone = await serve(make_engine())
    prompts = [f"{number} {PROMPT}"[: 40 + 13 * number] for number in range(16)]
    expected = [await text(alone, prompt=prompt) for prompt in prompts]
    served = await serve(make_engine(), max_num_seqs=5)
    for _ in range(2):
        assert await asyncio.gather(*(text(served, prompt=prompt) for prompt in prompts)) == expected
