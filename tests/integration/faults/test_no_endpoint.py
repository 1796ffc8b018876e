"""An instance that nobody gave a token to takes no faults."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from lmcache_kit.cli.serve import make_engine
from lmcache_kit.instance.config.loading import instance_config
from lmcache_kit.instance.faults import FAULTS_VARIABLE, TOKEN_VARIABLE
from lmcache_kit.instance.server import bind, serve


@pytest.mark.parametrize("token", [None, "0123456789abcdef"])
async def test_the_endpoint_is_there_only_with_a_token(
    token: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAULTS_VARIABLE, '{"full_tiers": ["LocalCPUBackend"]}')
    if token is None:
        monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(TOKEN_VARIABLE, token)
    config = instance_config({"chunk_size": 16, "extra_config": {"lmcache_kit": {"data_dir": str(tmp_path)}}})
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    serving = asyncio.ensure_future(
        serve(
            config,
            make_engine("synthetic", "m", {}, max_model_len=None),
            bind("127.0.0.1", 0),
            served_models=["m"],
            stop=stop,
            on_ready=ready.set_result,
        )
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://{await ready}", trust_env=False) as client:
            headers = {"Authorization": "Bearer 0123456789abcdef"}
            body = {"model": "m", "prompt": list(range(64)), "max_tokens": 1}
            answer = await client.post("/v1/completions", json=body)
            stored = answer.json()["lmcache_kit"]["stored_tokens"]
            answer = await client.put("/faults", json={}, headers=headers)
            assert "/faults" not in (await client.get("/openapi.json")).json()["paths"]
            if token is None:
                assert (answer.status_code, stored) == (404, 64)
            else:
                # What it was started with held from the first request on, until it was taken back.
                assert (answer.status_code, stored) == (200, 0)
                answer = await client.post("/v1/completions", json=body)
                assert answer.json()["lmcache_kit"]["stored_tokens"] == 64
    finally:
        stop.set()
        await serving
