"""One vLLM server with its own prefix caching off, and a controller."""

from __future__ import annotations

import statistics
from typing import Any

import pytest

INSTANCE = "one"


@pytest.fixture(scope="module")
def controller(module_start: Any) -> Any:
    return module_start.controller("--call-timeout", "5", "--worker-timeout", "30")


@pytest.fixture(scope="module")
def server(module_start: Any, controller: Any) -> Any:
    configuration = module_start.configuration(
        INSTANCE, chunk_size=256, local_cpu=True, max_local_cpu_size=1.0, **controller.configuration(INSTANCE)
    )
    started = module_start.start(
        configuration,
        *("--no-enable-prefix-caching", "--max-num-batched-tokens", "1024", "--shutdown-timeout", "20"),
    )
    controller.until_joined(INSTANCE)
    return started


@pytest.mark.exercises("vLLM: a prompt of 600 tokens twice, vLLM's own prefix caching off")
def test_six_hundred(
    vllm_env: Any, server: Any, servers: Any, prompts: Any, controller: Any, expected: dict[str, list[int]]
) -> None:
    names = ("lmcache:num_hit_tokens_total", "lmcache:num_requested_tokens_total", "lmcache:num_stored_tokens_total")
    hits = "vllm:external_prefix_cache_hits_total"
    before = {name: server.metric(name) for name in (*names, hits)}
    prompt = prompts.CATALOG["six hundred"]
    cold = server.complete(prompt, 16)
    controller.until_held(prompt, INSTANCE, servers.CPU, 600)
    warm = server.complete(prompt, 16)
    assert cold.tokens == warm.tokens == expected["six hundred"][:16]
    assert cold.text == warm.text
    assert [cold.cached, warm.cached] == [0, 599]
    assert warm.said["cached_tokens_by_location"] == {servers.CPU: 599}
    assert warm.said["codecs"] == {"naive": 3}
    server.until_metric(names[0], lambda value: value - before[names[0]] == 599)
    assert server.metric(hits) - before[hits] == 599
    assert server.metric(names[1]) - before[names[1]] >= 1200
    assert server.metric(names[2]) - before[names[2]] >= 600


@pytest.mark.exercises("vLLM: time to first token at 2,000 tokens, loaded and computed")
def test_time_to_first_token(vllm_env: Any, server: Any, servers: Any, prompts: Any, controller: Any) -> None:
    asked = [prompts.prompt(f"time {number}", 2000) for number in range(5)]
    cold = [server.first_token_seconds(prompt) for prompt in asked]
    for prompt in asked:
        controller.until_held(prompt, INSTANCE, servers.CPU, 2000)
    warm = [server.first_token_seconds(prompt) for prompt in asked]
    assert statistics.median(warm) < statistics.median(cold), (warm, cold)
    assert server.complete(asked[0], 2).cached == 1999


@pytest.mark.exercises("vLLM: requests at once that share a prefix")
def test_shared_prefix(
    vllm_env: Any, server: Any, servers: Any, prompts: Any, controller: Any, expected: dict[str, list[int]]
) -> None:
    names = ["shared", "shared one", "shared two"]
    together = [prompts.CATALOG[name] for name in names]
    answers = server.complete_all(together, 16)
    assert [answer.tokens for answer in answers] == [expected[name][:16] for name in names]
    for prompt in together:
        controller.until_held(prompt, INSTANCE, servers.CPU, len(prompt))
    again = server.complete_all(together, 16)
    assert [answer.tokens for answer in again] == [expected[name][:16] for name in names]
    assert [answer.cached for answer in again] == [len(prompt) - 1 for prompt in together]


@pytest.mark.exercises("vLLM: clients that hang up in the middle of a prefill")
def test_abandoned(
    vllm_env: Any, server: Any, servers: Any, prompts: Any, controller: Any, expected: dict[str, list[int]]
) -> None:
    prompt = prompts.CATALOG["abandoned"]
    for number in range(4):
        server.abandon(prompts.sharing(f"other {number}", 1, "abandoned", 3500), after=0.3)
    for number in range(3):
        server.abandon(prompt, after=0.2 + 0.2 * number)
    server.until(lambda: server.metric("vllm:num_requests_running") == 0, "an idle engine")
    cold = server.complete(prompt, 16)
    controller.until_held(prompt, INSTANCE, servers.CPU, 3500)
    assert cold.tokens == expected["abandoned"][:16]
    # Whatever the abandoned ones left is whole chunks, and nothing is kept from being evicted.
    assert cold.cached % 256 == 0
    for _ in range(4):
        server.abandon(prompt, after=0.02, max_tokens=2000)
    warm = server.complete(prompt, 16)
    assert warm.tokens == cold.tokens
    assert warm.cached == 3499
    assert server.until_metric("lmcache_kit_tier_pinned", lambda value: value == 0) == 0
    assert server.metric("lmcache_kit_staging_full_total") == 0
    assert server.metric("lmcache_kit_copy_errors_total") == 0
    assert server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting") == 0


@pytest.mark.exercises("vLLM: completions read zstd chunks (lossless): equal text")
def test_lossless(
    vllm_env: Any, server: Any, servers: Any, prompts: Any, controller: Any, expected: dict[str, list[int]]
) -> None:
    prompt = prompts.CATALOG["lossless"]
    raw = server.complete(prompt, 16)
    controller.until_held(prompt, INSTANCE, servers.CPU, 400)
    job = {"instance_id": INSTANCE, "location": servers.CPU, "method": "zstd", "tokens": prompt}
    state = controller.do("/compress", **job)
    assert state["bytes_after"] < state["bytes_before"]
    packed = server.complete(prompt, 16)
    assert packed.said["codecs"] == {"zstd": 2}
    assert packed.cached == 399
    assert packed.tokens == raw.tokens == expected["lossless"][:16]
    controller.do("/decompress", **job)
    unpacked = server.complete(prompt, 16)
    assert unpacked.said["codecs"] == {"naive": 2}
    assert unpacked.tokens == raw.tokens


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, marks=pytest.mark.exercises(f"vLLM: completions read {method} chunks (lossy): answered"))
        for method in ("cachegen", "fp8")
    ],
)
def test_lossy(
    vllm_env: Any,
    server: Any,
    servers: Any,
    prompts: Any,
    controller: Any,
    expected: dict[str, list[int]],
    method: str,
) -> None:
    prompt = prompts.sharing(method, 1, "lossy", 400)
    server.complete(prompt, 16)
    controller.until_held(prompt, INSTANCE, servers.CPU, 400)
    job = {"instance_id": INSTANCE, "location": servers.CPU, "method": method, "tokens": prompt}
    state = controller.do("/compress", **job)
    assert state["bytes_after"] < state["bytes_before"]
    packed = server.complete(prompt, 16)
    assert packed.said["codecs"] == {method: 2}
    assert (packed.cached, len(packed.tokens)) == (399, 16)
    # What is computed behind it is not stored under it: the other half of the fleet reads what is exact.
    other = server.complete(prompts.CATALOG["lossy"], 16)
    assert other.tokens == expected["lossy"][:16]
    controller.do("/decompress", **job)
    assert server.complete(prompt, 16).said["codecs"] == {"naive": 2}


@pytest.mark.exercises("vLLM: pin, unpin and clear by the controller")
def test_pin_and_clear(
    vllm_env: Any, server: Any, servers: Any, prompts: Any, controller: Any, expected: dict[str, list[int]]
) -> None:
    prompt = prompts.CATALOG["lossless"]
    server.complete(prompt)
    controller.until_held(prompt, INSTANCE, servers.CPU, 400)
    where = {"instance_id": INSTANCE, "location": servers.CPU}
    assert controller.post("/pin", **where, tokens=prompt)["num_tokens"] == 400
    server.until_metric("lmcache_kit_tier_pinned", lambda value: value == 2)
    assert controller.post("/unpin", **where, tokens=prompt)["num_tokens"] == 400
    server.until_metric("lmcache_kit_tier_pinned", lambda value: value == 0)
    assert controller.post("/clear", **where)["num_tokens"] > 0
    cleared = server.complete(prompt, 16)
    assert cleared.cached == 0
    assert cleared.tokens == expected["lossless"][:16]
    assert controller.post("/health", instance_id=INSTANCE)["error_codes"] == {"0": 0}


@pytest.mark.exercises("vLLM: the controller is killed under load, and comes back")
def test_controller_killed(
    vllm_env: Any, server: Any, servers: Any, prompts: Any, controller: Any, expected: dict[str, list[int]]
) -> None:
    names = [name for name in prompts.CATALOG if name.startswith("load")]
    with servers.Background(server, [prompts.CATALOG[name] for name in names]) as load:
        load.more(4)
        controller.kill()
        load.more(12)
        missing = prompts.prompt("while the controller is away", 300)
        away = server.complete(missing, 4)
        server.until_metric("lmcache_kit_worker_registered", lambda value: value == 0)
        load.more(4)
        controller.start()
        load.more(4)
    assert load.errors == []
    assert [answer.tokens for _, answer in load.answers] == [expected[names[index]][:8] for index, _ in load.answers]
    assert away.cached == 0
    server.until_metric("lmcache_kit_worker_synced", lambda value: value == 1)
    # It learns again of everything, also of what came while it was away.
    for prompt in (missing, *(prompts.CATALOG[name] for name in names)):
        controller.until_held(prompt, INSTANCE, servers.CPU, len(prompt))
    assert server.complete(missing, 4).tokens == away.tokens


@pytest.mark.exercises("vLLM: ended by SIGTERM with --shutdown-timeout: it leaves the controller")
def test_ended(vllm_env: Any, server: Any, servers: Any, prompts: Any, controller: Any) -> None:
    group = server.process.child.pid
    assert server.stop() == 0
    assert servers.shared_memory(group) == set()
    log = server.process.text()
    assert controller.post("/query_worker_info", instance_id="all")["worker_infos"] == [], log[-3000:]
    assert controller.holders(prompts.CATALOG["six hundred"]) == {}
    # The API server itself complains of an engine that has ended; engine and ranks have nothing to complain of.
    assert [
        line for line in log.splitlines() if line.startswith(("(EngineCore", "(Worker")) and " ERROR " in line
    ] == []
