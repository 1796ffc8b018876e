from __future__ import annotations

from typing import Any

import pytest

from lmcache_kit.errors import InvalidRequestError, LMCacheKitError


@pytest.fixture
async def serving(fleet: Any) -> Any:
    await fleet.run("serve", "completions", prompts=["alphabet", "alphorn", "beta"], instances=["a"])
    return fleet


async def test_every_prompt_is_looked_up(serving: Any) -> None:
    values = await serving.run("look", "lookup", of="serve")
    assert values["counts"] == {"lookups": 3, "complete": 3, "misses": 0}
    assert (values["tokens"], values["hit_tokens"], values["hit_rate"], values["all_found"]) == (19, 19, 1.0, True)
    assert (values["bytes_before"], values["bytes_after"]) == (190, 190)
    assert values["best_tokens_by_location"] == {"a.LocalCPUBackend": 19}
    assert values["latency_seconds"]["max"] >= values["latency_seconds"]["min"] >= 0


async def test_a_prompt_that_is_gone_is_a_miss(serving: Any) -> None:
    del serving.books.held["a", "LocalCPUBackend"][tuple(map(ord, "beta"))]
    values = await serving.run("look", "lookup", of="serve", settle_seconds=0.05)
    assert values["counts"] == {"lookups": 3, "complete": 2, "misses": 1}
    assert (values["hit_tokens"], values["expected_tokens"], values["all_found"]) == (15, 19, False)


async def test_compress_and_decompress_follow_their_jobs(serving: Any) -> None:
    compress = await serving.run("compress", "compress", of="serve", method="zstd")
    assert compress["counts"] == {"jobs": 3}
    assert (compress["bytes_before"], compress["bytes_after"], compress["ratio"]) == (190, 95, 2.0)
    # "alphabet" and "alphorn" share their first chunk of four tokens.
    assert compress["tokens"] == 19 - 4
    assert compress["job_seconds"]["p50"] == 0.5
    assert (compress["method"], compress["location"], compress["devices"]) == ("zstd", "LocalCPUBackend", ["cpu"])
    decompress = await serving.run("decompress", "decompress", of="serve", method="zstd")
    assert (decompress["bytes_before"], decompress["bytes_after"], decompress["ratio"]) == (95, 190, 0.5)


async def test_a_repeated_prompt_is_one_job(fleet: Any) -> None:
    await fleet.run("serve", "completions", prompts=["same", "same", "same"])
    values = await fleet.run("compress", "compress", of="serve", method="zstd")
    assert values["counts"] == {"jobs": 2}, "one on each instance"


async def test_a_failed_job_is_an_error_with_its_reason(serving: Any) -> None:
    serving.books.fail.add("jobs")
    with pytest.raises(LMCacheKitError, match="compress on a failed: the disk is full"):
        await serving.run("compress", "compress", of="serve", method="zstd")


@pytest.mark.parametrize("copy", [False, True])
async def test_a_move_is_verified(serving: Any, copy: bool) -> None:
    values = await serving.run(
        "move", "move", **{"of": "serve", "from": {"instance": "a"}, "to": {"instance": "b"}, "copy": copy}
    )
    assert values["counts"] == {"jobs": 1, "verified": 1}
    assert (values["tokens"], values["verified"], values["copy"]) == (8, True, copy)
    assert (values["source"], values["target"]) == (["a", "LocalCPUBackend"], ["b", "LocalCPUBackend"])
    assert (values["bytes_before"], values["bytes_after"]) == (80, 80)


async def test_a_move_that_did_not_happen_is_seen(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmcache_kit.builtin.workloads import move

    monkeypatch.setattr(move, "SETTLE_SECONDS", 0.05)
    serving.books.fail.add("move")
    values = await serving.run("move", "move", **{"of": "serve", "from": {"instance": "a"}, "to": {"instance": "b"}})
    assert (values["verified"], values["counts"]["verified"]) == (False, 0)


async def test_chosen_prompts_are_moved(serving: Any) -> None:
    options: dict[str, Any] = {"of": "serve", "from": {"instance": "a"}, "to": {"instance": "b"}}
    values = await serving.run("move", "move", **options, prompts=[2, 1])
    assert values["tokens"] == len("beta") + len("alphorn")
    with pytest.raises(InvalidRequestError, match="there is no prompt 3"):
        await serving.run("move", "move", **options, prompts=[3])
    options["from"], options["to"] = options["to"], options["from"]
    with pytest.raises(InvalidRequestError, match="completed nothing on b"):
        await serving.run("move", "move", **options)


async def test_pin_unpin_and_clear(serving: Any) -> None:
    pinned = await serving.run("pin", "pin", of="serve", owner="me", ttl_seconds=5.0)
    released = await serving.run("unpin", "unpin", of="serve", owner="me")
    cleared = await serving.run("clear", "clear")
    assert (pinned["tokens"], released["tokens"], cleared["tokens"]) == (19, 19, 19)
    assert ("pin", ("a", "LocalCPUBackend", 4, {"owner": "me", "ttl": 5.0})) in serving.books.calls
    assert (cleared["bytes_before"], cleared["bytes_after"], cleared["counts"]) == (190, 0, {"calls": 2})


async def test_tokens_are_asked_for_once(serving: Any) -> None:
    await serving.run("look", "lookup", of="serve")
    await serving.run("compress", "compress", of="serve", method="zstd")
    assert sum(kind == "tokenize" for kind, _ in serving.books.calls) == 3
