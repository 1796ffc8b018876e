"""A real Llama behind the instance's HTTP interface, its KV in a real store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lmcache_kit.clock import WallClock
from lmcache_kit.instance.config.loading import instance_config
from lmcache_kit.instance.http.app import InstanceApp
from lmcache_kit.instance.http.generation import Generator
from lmcache_kit.instance.http.metrics import InstanceMetrics
from lmcache_kit.instance.runtime import InstanceRuntime

CHUNK = 128


@pytest.fixture(params=["memory", "disk"])
async def instance(request: pytest.FixtureRequest, engine: Any, tmp_path: Path) -> AsyncIterator[Any]:
    tiers = [{"kind": request.param}]
    values = {"chunk_size": CHUNK, "extra_config": {"lmcache_kit": {"tiers": tiers, "data_dir": str(tmp_path)}}}
    config, clock = instance_config(values), WallClock()
    runtime = InstanceRuntime(config, engine.info, clock=clock)
    await runtime.start()
    metrics = InstanceMetrics("tiny", config.instance_id, runtime.stats)
    generator = Generator(engine, runtime.store, chunk_size=CHUNK, metrics=metrics, clock=clock)
    app = InstanceApp(generator, metrics, clock=clock, served_models=["tiny"], health=dict)
    transport = httpx.ASGITransport(app=app.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://instance") as http:
        yield http, runtime
    await generator.close()
    await runtime.close()


async def test_a_second_request_computes_one_token_and_says_the_same(instance, engine, monkeypatch) -> None:
    http, runtime = instance
    computed: list[int] = []
    start = engine.start

    def noted(*args: Any, **kwargs: Any) -> Any:
        sequence = start(*args, **kwargs)
        close = sequence.close
        monkeypatch.setattr(sequence, "close", lambda: (computed.append(sequence.computed_tokens), close()))
        return sequence

    monkeypatch.setattr(engine, "start", noted)
    tokens = [0, *(2 + number * 31 % 390 for number in range(599))]
    body = {"prompt": tokens, "max_tokens": 24, "temperature": 0}
    cold = (await http.post("/v1/completions", json=body)).json()
    assert runtime.store.lookup(tokens) == dict.fromkeys(runtime.store.locations(), 600)
    warm = (await http.post("/v1/completions", json=body)).json()
    assert cold["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert cold["lmcache_kit"]["stored_tokens"] == 600
    assert warm["usage"]["prompt_tokens_details"]["cached_tokens"] == 599
    assert warm["lmcache_kit"]["cached_tokens_by_location"] == {runtime.store.locations()[0]: 599}
    assert warm["choices"] == cold["choices"]
    longer = {**body, "prompt": [*tokens, *range(10, 60)]}
    shared = (await http.post("/v1/completions", json=longer)).json()
    assert shared["usage"]["prompt_tokens_details"]["cached_tokens"] == 4 * CHUNK
    assert computed == [600, 1, 650 - 4 * CHUNK]


async def test_text_in_and_text_out(instance, engine) -> None:
    http, _ = instance
    prompt = "A chunk is a run of tokens; its key covers every token before it."
    tokens = (await http.post("/tokenize", json={"prompt": prompt})).json()["tokens"]
    body = {"prompt": prompt, "max_tokens": 16, "temperature": 0, "return_token_ids": True}
    choice = (await http.post("/v1/completions", json=body)).json()["choices"][0]
    assert choice["prompt_token_ids"] == tokens
    assert choice["text"] == engine.detokenize(choice["token_ids"])
    same = (await http.post("/v1/completions", json={**body, "prompt": tokens})).json()["choices"][0]
    assert same == choice
