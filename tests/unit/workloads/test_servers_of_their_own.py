"""Workloads on an instance that answers as vLLM does: facts are read where they exist, and absent where they do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache_kit.builtin.workloads.served import chunk_size_of
from lmcache_kit.client import Completion, cache_facts
from lmcache_kit.contracts.workload import InstanceHandle
from lmcache_kit.errors import UnavailableError

LOADED = {"loaded_bytes", "loaded_kv_bytes", "load_seconds", "cached_tokens_by_location", "codecs"}


@pytest.fixture
def like_vllm(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The instance a answers as vLLM: facts of loads one level deeper, and only beside whole answers."""
    client = fleet.clients["a"]
    streamed = client.stream_complete

    async def stream_complete(prompt: str, **more: Any) -> Completion:
        done = await streamed(prompt, **more)
        return replace(done, raw={"usage": done.usage})

    async def complete(prompt: str, **more: Any) -> dict[str, Any]:
        done = await streamed(prompt, **more)
        facts = {key: value for key, value in done.raw["lmcache_kit"].items() if key in LOADED}
        return {
            "usage": done.usage,
            "kv_transfer_params": {"lmcache_kit": facts if done.cached_tokens else {"codecs": {}}},
            "choices": [{"text": done.text}],
        }

    async def health() -> dict[str, Any]:
        return {}

    monkeypatch.setattr(client, "stream_complete", stream_complete)
    monkeypatch.setattr(client, "complete", complete)
    monkeypatch.setattr(client, "health", health)
    return fleet


async def test_whole_answers_tell_what_was_loaded_and_how(like_vllm: Any) -> None:
    cold = await like_vllm.run("serve", "completions", prompts=["alpha", "beta"], instances=["a"], stream=False)
    warm = await like_vllm.run("again", "completions", compare_to="serve", stream=False)
    assert (cold["cached_tokens"], cold["cached_tokens_by_location"], cold["loaded_ratio"]) == (0, {}, None)
    assert warm["cached_tokens"] == 7
    assert warm["cached_tokens_by_location"] == {"LocalCPUBackend": 7}
    assert warm["chunks_read_by_codec"] == {"naive": 2}
    assert warm["loaded_ratio"] == 2
    assert [warm[key] for key in ("stored_tokens", "bytes_before", "bytes_after", "ratio")] == [None] * 4


async def test_streamed_answers_tell_only_how_many_tokens(like_vllm: Any) -> None:
    await like_vllm.run("serve", "completions", prompts=["alpha", "beta"], instances=["a"])
    warm = await like_vllm.run("again", "completions", compare_to="serve")
    assert (warm["cached_tokens"], warm["ttft_cached_seconds"]["p50"]) == (7, 0.001)
    absent = ("cached_tokens_by_location", "chunks_read_by_codec", "loaded_ratio", "stored_tokens", "bytes_before")
    assert [warm[key] for key in absent] == [None] * 5


async def test_one_that_does_not_tell_among_others_that_do(like_vllm: Any) -> None:
    prompts = [{"text": "alpha", "instance": "a"}, {"text": "beta", "instance": "b"}]
    cold = await like_vllm.run("serve", "completions", prompts=prompts)
    warm = await like_vllm.run("again", "completions", compare_to="serve")
    assert cold["cached_tokens_by_location"] == {}, "nothing was cached, which is known"
    assert warm["cached_tokens_by_location"] is None, "half of it would be wrong"
    assert warm["loaded_ratio"] is None
    assert (cold["stored_tokens"], warm["stored_tokens"]) == (None, None)


async def test_ratios_of_an_instance_that_tells_everything(fleet: Any) -> None:
    cold = await fleet.run("serve", "completions", prompts=["alpha"], instances=["b"])
    warm = await fleet.run("again", "completions", compare_to="serve")
    assert (cold["loaded_ratio"], warm["loaded_ratio"]) == (None, 2)


@pytest.mark.parametrize("kind", ["compress", "lookup", "clear"])
async def test_metrics_that_may_be_old_are_not_taken_for_what_is_held(
    like_vllm: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await like_vllm.run("serve", "completions", prompts=["alpha"], instances=["a"])
    options: dict[str, Any] = {
        "compress": {"of": "serve", "method": "zstd"},
        "lookup": {"of": "serve"},
        "clear": {"instances": ["a"]},
    }[kind]
    known = await like_vllm.run("known", kind, **options)
    assert known["bytes_before"] is not None
    made = InstanceHandle.__init__
    monkeypatch.setattr(
        InstanceHandle, "__init__", lambda self, **facts: made(self, **facts, server=facts["instance_id"] == "a")
    )
    values = await like_vllm.run("found", kind, **options)
    assert (values["bytes_before"], values["bytes_after"], values["ratio"]) == (None, None, None)
    assert (values["counts"], values.get("all_found")) == (known["counts"], known.get("all_found"))


async def test_the_chunk_size_is_the_runners_else_the_instances_own(like_vllm: Any) -> None:
    class Away:
        async def health(self) -> dict[str, Any]:
            raise UnavailableError("away")

    def handle(client: Any, size: int | None) -> InstanceHandle:
        return InstanceHandle(instance_id="x", url="", client=client, locations=(), model="m", chunk_size=size)

    assert await chunk_size_of(handle(Away(), 16)) == 16
    assert await chunk_size_of(handle(like_vllm.clients["b"], None)) == 4
    assert await chunk_size_of(handle(like_vllm.clients["a"], None)) is None, "an empty body tells nothing"
    assert await chunk_size_of(handle(Away(), None)) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=3), below, max_size=3),
)
FACTS = st.dictionaries(st.sampled_from(["codecs", "loaded_bytes"]), JSON)


@given(more=st.dictionaries(st.text(max_size=5), JSON), facts=FACTS, deeper=FACTS, ours=st.booleans())
def test_facts_are_found_at_either_place(more: Any, facts: Any, deeper: Any, ours: bool) -> None:
    answer = {**more, "kv_transfer_params": {"lmcache_kit": deeper, "other": 1}}
    if ours:
        answer["lmcache_kit"] = facts
    assert cache_facts(answer) == (facts if ours else deeper)


@given(params=JSON | st.fixed_dictionaries({"lmcache_kit": JSON}), own=JSON)
def test_anything_else_there_is_nothing(params: Any, own: Any) -> None:
    found = cache_facts({"kv_transfer_params": params, "lmcache_kit": own})
    expected = own if isinstance(own, dict) else params.get("lmcache_kit") if isinstance(params, dict) else None
    assert found == (expected if isinstance(expected, dict) else {})
    assert cache_facts({}) == {}
