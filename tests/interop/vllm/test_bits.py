"""KV that is stored and loaded is what the model computed, bit for bit, in every layer.

What the model computed is caught where vLLM writes it into its blocks. `vllm serve` on a CPU refuses blocks of 16
tokens ("No common block size for 16"), though its kernels have them: for these the engine of the test says that it
takes multiples of 16.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

PROMPT_TOKENS = 300
# block size, dtype, method, chunk size, tokens computed in a step. Chunks are multiples of blocks and not; the last one
# of the prompt is never whole.
CASES = {
    f"{block_size} {dtype} {method}": (block_size, dtype, method, chunk_size, batch)
    for block_size, chunk_size in ((16, 64), (32, 100), (128, 256))
    for dtype, batch in (("float32", 2048), ("bfloat16", 256))
    for method in ("naive", "zstd")
}


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, in_process: Any, prompts: Any) -> Iterator[dict[str, Future[list[Any]]]]:
    """The selected cases, two at a time: most of an engine's time is importing."""
    selected = [case for case in CASES if any(f"[{case}]" in item.nodeid for item in request.session.items)]
    pool = ThreadPoolExecutor(2)
    prompt = prompts.prompt("bits", PROMPT_TOKENS)

    def run(case: str) -> list[Any]:
        block_size, dtype, method, chunk_size, batch = CASES[case]
        disk = in_process.folder / f"disk {case}"
        tier = {"kind": "disk", "capacity": "1GiB", "method": method, "options": {"path": str(disk)}}
        return in_process.run(
            case,
            [
                {"do": "generate", "prompts": [prompt], "max_tokens": 4},
                {"do": "await_blobs", "count": -(-PROMPT_TOKENS // chunk_size)},
                {"do": "compare_store", "prompt": prompt},
                {"do": "wipe"},
                {"do": "generate", "prompts": [prompt], "max_tokens": 4},
                {"do": "compare_blocks", "prompt": prompt, "tokens": PROMPT_TOKENS - 1},
            ],
            configuration={"chunk_size": chunk_size, "extra_config": {"lmcache_kit": {"tiers": [tier]}}},
            engine={"block_size": block_size, "dtype": dtype, "max_num_batched_tokens": batch},
            block_multiple=16 if block_size == 16 else None,
            store=str(disk),
            chunk_size=chunk_size,
        )

    yield {case: pool.submit(run, case) for case in selected}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.exercises(f"vLLM: KV computed, stored and loaded, bit for bit: {case}"))
        for case in CASES
    ],
)
def test_every_bit(vllm_env: Any, runs: dict[str, Future[list[Any]]], case: str) -> None:
    _, dtype, method, _, _ = CASES[case]
    cold, blobs, stored, _, warm, loaded = runs[case].result()
    none_differ = [0] * 6
    assert stored["shape"] == [6, 2, PROMPT_TOKENS, 2, 64]
    assert stored["differing"] == none_differ
    assert stored["codecs"] == [method] * blobs
    assert stored["distinct"] > 1000  # what was compared is not all the same
    # The last token is always computed, the others came out of the store.
    assert [cold[0]["cached"], warm[0]["cached"]] == [0, PROMPT_TOKENS - 1]
    assert warm[0]["said"]["codecs"] == {method: blobs}
    assert loaded["first_computed"] == PROMPT_TOKENS - 1
    assert loaded["shape"] == [6, 2, PROMPT_TOKENS - 1, 2, 64]
    assert loaded["differing"] == none_differ
    # In bfloat16 the model's sums, and with them its choice among random words, depend on how many tokens are computed
    # together, with or without us.
    assert dtype != "float32" or warm[0]["tokens"] == cold[0]["tokens"]


@pytest.mark.exercises("vLLM: blocks of 16 tokens on a CPU (vLLM refuses them itself)")
def test_blocks_of_16(vllm_env: Any, in_process: Any) -> None:
    with pytest.raises(AssertionError, match="No common block size for 16"):
        in_process.run("blocks of 16", [], configuration=None, engine={"block_size": 16})
