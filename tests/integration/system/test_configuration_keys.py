"""LMCache's configuration keys change what an instance does, seen from outside."""

from __future__ import annotations

import time
from typing import Any

import pytest

CPU, DISK = "LocalCPUBackend", "LocalDiskBackend"
PROMPT = [(11 * n) % 256 for n in range(100)]


def test_tokens_that_were_generated_are_kept_only_when_asked_for(fleet: Any) -> None:
    prompts = {"keeps": PROMPT, "drops": PROMPT[1:]}
    for name, prompt in prompts.items():
        instance = fleet.start(name, save_decode_cache=name == "keeps")
        body = {"prompt": prompt, "max_tokens": 30, "temperature": 0, "return_token_ids": True}
        [choice] = instance.http.post("/v1/completions", json=body).json()["choices"]
        whole = prompt + choice["token_ids"]
        # The last token that was made was never fed back, so it has no KV.
        fleet.until_held(whole[:-1], {name: {CPU: len(whole) - 1 if name == "keeps" else 96}})


def test_short_hits_are_computed_again(fleet: Any) -> None:
    a = fleet.start("a", min_retrieve_tokens=60, chunk_size=32)
    a.complete(PROMPT)
    fleet.until_held(PROMPT, {"a": {CPU: 100}})
    assert a.complete(PROMPT[:50] + [1] * 50)["cached_tokens"] == 0
    assert a.complete(PROMPT[:64] + [1] * 50)["cached_tokens"] == 64


@pytest.mark.parametrize(("policy", "victim"), [("LRU", "c"), ("LFU", "b"), ("FIFO", "a"), ("mru", "d")])
def test_cache_policy(fleet: Any, policy: str, victim: str) -> None:
    # One chunk each, and room for four of them.
    prompts = {name: [number] * 16 for number, name in enumerate("abcde")}
    instance = fleet.start("i", cache_policy=policy, max_local_cpu_size=10_240 / 1024**3)
    for name in "abcd" + "ccc" + "b" + "aaa" + "dd" + "e":
        instance.complete(prompts[name])
    for name in "abcde":
        fleet.until_held(prompts[name], {} if name == victim else {"i": {CPU: 16}})


def test_where_is_read_and_written(fleet: Any) -> None:
    both = {"local_disk": "disk", "max_local_disk_size": 1}
    a = fleet.start("a", retrieve_locations=[DISK], **both)
    a.complete(PROMPT)
    fleet.until_held(PROMPT, {"a": {CPU: 100, DISK: 100}})
    assert a.complete(PROMPT)["cached_tokens_by_location"] == {DISK: 99}
    fleet.post("/clear", instance_id="a", location=DISK)
    assert a.complete(PROMPT)["cached_tokens"] == 0
    b = fleet.start("b", store_location=DISK, **{**both, "local_disk": "disk-b"})
    b.complete(PROMPT)
    fleet.eventually(lambda: fleet.holders(PROMPT).get("b") == {DISK: 100}, "the chunks on disk")


def test_pins_end_after_pin_timeout_sec(fleet: Any) -> None:
    a = fleet.start("a", pin_timeout_sec=1)
    a.complete(PROMPT)
    fleet.until_held(PROMPT, {"a": {CPU: 100}})
    pin = {"instance_id": "a", "location": CPU, "tokens": PROMPT}
    fleet.post("/pin", **pin)
    fleet.post("/pin", **{**pin, "tokens": PROMPT[:16]}, ttl=3600, owner="long")
    assert fleet.post("/clear", instance_id="a", location=CPU)["num_tokens"] == 0
    time.sleep(1.1)
    assert fleet.post("/clear", instance_id="a", location=CPU)["num_tokens"] == 84
    fleet.until_held(PROMPT, {"a": {CPU: 16}})


def test_the_environment_goes_over_the_file_and_what_has_no_effect_is_named(fleet: Any) -> None:
    a = fleet.start(
        "a",
        environment={
            "LMCACHE_CHUNK_SIZE": "32",
            "LMCACHE_SAVE_UNFULL_CHUNK": "false",
            "LMCACHE_PRE_CACHING_HASH_ALGORITHM": "blake3",
            "LMCACHE_LMCACHE_WORKER_IDS": "3",
            "LMCACHE_ENABLE_BLENDING": "true",
        },
        enable_pd=True,
        use_layerwise=True,
    )
    a.complete(PROMPT)
    fleet.until_held(PROMPT, {"a": {CPU: 96}})
    [spec] = fleet.post("/lookup", tokens=PROMPT, explain=True)["explain"]["specs"]
    assert (spec["chunk_size"], spec["hash_algorithm"], spec["save_unfull_chunk"]) == (32, "blake3", False)
    [worker] = fleet.post("/query_worker_info", instance_id="a")["worker_infos"]
    assert worker["worker_id"] == 3
    for key in ("LMCACHE_ENABLE_BLENDING", "enable_pd", "use_layerwise"):
        assert f"{key} has no effect: " in a.process.text()
