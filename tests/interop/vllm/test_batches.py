"""Prompts in batches, pieces and with interruptions: answers are those of vLLM alone, whatever was loaded."""

from __future__ import annotations

from typing import Any

import pytest

MEMORY = {"local_cpu": True, "max_local_cpu_size": 1.0}


def named(answers: list[Any], names: Any) -> dict[str, list[int]]:
    return {name: answer["tokens"] for name, answer in zip(names, answers, strict=True)}


@pytest.mark.parametrize(
    ("chunk_size", "block_size", "kept"),
    [
        pytest.param(
            *(chunk_size, block_size, kept),
            id=f"chunks of {chunk_size}, blocks of {block_size}",
            marks=pytest.mark.exercises(
                f"vLLM: chunked prefill in batches with shared prefixes: chunks of {chunk_size}, blocks of {block_size}"
            ),
        )
        for chunk_size, block_size, kept in ((16, 32, True), (100, 128, True), (256, 32, True), (256, 128, False))
    ],
)
def test_chunked_prefill(
    vllm_env: Any,
    in_process: Any,
    prompts: Any,
    expected: dict[str, list[int]],
    chunk_size: int,
    block_size: int,
    kept: bool,
) -> None:
    names = [name for name in prompts.CATALOG if name.startswith(("batch", "shared"))]
    asked = [prompts.CATALOG[name] for name in names]
    first, metrics, again, more = in_process.run(
        f"chunks of {chunk_size}, blocks of {block_size}",
        [
            {"do": "generate", "prompts": asked, "max_tokens": 16},
            {"do": "metrics"},
            {"do": "generate", "prompts": asked, "max_tokens": 16},
            {"do": "metrics"},
        ],
        configuration={**MEMORY, "chunk_size": chunk_size, "save_unfull_chunk": kept},
        engine={"block_size": block_size, "max_num_batched_tokens": 256},
    )
    wanted = {name: expected[name][:16] for name in names}
    assert named(first, names) == wanted
    assert named(again, names) == wanted
    for name, answer in zip(names, again, strict=True):
        length = len(prompts.CATALOG[name])
        held = length if kept else length - length % chunk_size
        assert answer["cached"] == min(held, length - 1), name
        assert sum(answer["said"]["cached_tokens_by_location"].values()) == answer["cached"]
    hits = "vllm:external_prefix_cache_hits"
    assert more[hits] - metrics[hits] == sum(answer["cached"] for answer in again)


@pytest.mark.exercises("vLLM: preemption under a small KV cache")
@pytest.mark.parametrize("decoded", [False, True], ids=["prompts kept", "outputs kept too"])
def test_preemption(
    vllm_env: Any, in_process: Any, prompts: Any, expected: dict[str, list[int]], decoded: bool
) -> None:
    names = list(prompts.LONG)
    first, again, metrics = in_process.run(
        f"preemption {decoded}",
        [
            {"do": "generate", "prompts": list(prompts.LONG.values()), "max_tokens": 120},
            {"do": "generate", "prompts": list(prompts.LONG.values()), "max_tokens": 120},
            {"do": "metrics"},
        ],
        configuration={**MEMORY, "chunk_size": 32, "save_decode_cache": decoded},
        engine={"block_size": 32, "num_gpu_blocks_override": 40, "max_model_len": 1024},
    )
    assert metrics["vllm:num_preemptions"] > 0
    wanted = {name: expected[name] for name in names}
    assert named(first, names) == wanted
    assert named(again, names) == wanted
    assert all(answer["cached"] >= 199 for answer in again)


@pytest.mark.exercises("vLLM: KV of generated tokens is stored and loaded (save_decode_cache)")
@pytest.mark.parametrize("decoded", [False, True], ids=["off", "on"])
def test_outputs_are_kept(
    vllm_env: Any, in_process: Any, prompts: Any, expected: dict[str, list[int]], decoded: bool
) -> None:
    asked = prompts.LONG["long 0"]
    # A dialogue: the next prompt is the last one with its answer.
    answered = [*asked, *expected["long 0"][:100]]
    steps = [{"do": "generate", "prompts": [asked], "max_tokens": 110}]
    steps += [{"do": "generate", "prompts": [answered], "max_tokens": 20}]
    first, second = in_process.run(
        f"outputs {decoded}",
        steps,
        configuration={**MEMORY, "chunk_size": 64, "save_decode_cache": decoded},
        engine={"block_size": 32},
    )
    assert first[0]["tokens"] == expected["long 0"][:110]
    assert second[0]["tokens"] == expected["long 0"][100:120]
    # Of 300 tokens, the chunks before token 256 are whole; without outputs those before 192 are the prompt's.
    assert second[0]["cached"] == (256 if decoded else 192)
