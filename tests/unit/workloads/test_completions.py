from __future__ import annotations

from typing import Any

import pytest

from lmcache_kit.errors import ConfigError, InvalidRequestError, UnavailableError

COMMON = {"counts", "tokens", "bytes_before", "bytes_after", "ratio", "seconds", "latency_seconds"}


async def test_values_of_cold_and_cached_requests(fleet: Any) -> None:
    cold = await fleet.run("serve", "completions", prompts=["alpha", "beta"], instances=["a"], max_tokens=3)
    warm = await fleet.run("again", "completions", compare_to="serve", max_tokens=3)
    assert set(cold) >= COMMON
    assert set(warm) >= COMMON
    assert (cold["tokens"], cold["cached_tokens"], cold["stored_tokens"], cold["completion_tokens"]) == (9, 0, 9, 6)
    assert (cold["bytes_before"], cold["bytes_after"], cold["ratio"]) == (90, 90, 1.0)
    assert (warm["cached_tokens"], warm["hit_rate"]) == (7, 7 / 9)
    assert (warm["bytes_before"], warm["bytes_after"], warm["ratio"]) == (70, 35, 2.0)
    assert warm["cached_tokens_by_location"] == {"LocalCPUBackend": 7}
    assert warm["chunks_read_by_codec"] == {"naive": 2}
    assert cold["ttft_cold_seconds"]["p50"] == 0.01
    assert cold["ttft_cached_seconds"] is None
    assert warm["ttft_cached_seconds"]["p50"] == 0.001
    assert warm["ttft_ratio"] == pytest.approx(0.1)
    assert cold["latency_seconds"]["p99"] == 0.02
    assert (warm["text_equal"], warm["text_equal_count"], warm["text_differs_at"]) == (True, 2, [])


async def test_texts_that_differ_are_counted_and_named(fleet: Any) -> None:
    await fleet.run("serve", "completions", prompts=["alpha", "beta"])
    fleet.books.text = lambda prompt: prompt.upper() if prompt == "beta" else "other"
    values = await fleet.run("again", "completions", compare_to="serve")
    assert (values["text_equal"], values["text_equal_count"], values["text_differs_at"]) == (False, 1, [0])


async def test_round_robin_and_a_prompts_own_instance(fleet: Any) -> None:
    await fleet.run("serve", "completions", prompts=["p0", {"text": "p1", "instance": "a"}, "p2", "p3"])
    assert [(event["instance"], event["position"]) for event in fleet.events] == [
        ("a", 0),
        ("a", 1),
        ("a", 2),
        ("b", 3),
    ]


async def test_the_same_prompts_go_to_the_same_instances_again(fleet: Any) -> None:
    await fleet.run("serve", "completions", prompts=["p0", "p1"])
    await fleet.run("same", "completions", prompts_of="serve")
    await fleet.run("moved", "completions", prompts_of="serve", instances=["b"])
    assert [event["instance"] for event in fleet.events] == ["a", "b", "a", "b", "b", "b"]


async def test_groups_share_a_passage_and_stay_together(fleet: Any) -> None:
    generate = {
        "text_file": "text.txt",
        "questions_file": "questions.txt",
        "groups": 2,
        "per_group": 3,
        "passage_words": 20,
    }
    values = await fleet.run("serve", "completions", generate=generate, routing="by_group")
    assert values["counts"]["requests"] == 6
    prompts = [entry.prompt for entry in fleet.notes["serve"]]
    passages = [prompt.text.partition("\n\nQuestion: ")[0] for prompt in prompts]
    assert len(set(passages)) == 2
    assert all(len(passage.split()) == 20 for passage in passages)
    assert [event["instance"] for event in fleet.events] == ["a", "a", "a", "b", "b", "b"]
    assert prompts[0].text.endswith("\n\nQuestion: Why?\nAnswer:")
    assert len({prompt.text for prompt in prompts}) == 6


async def test_prompts_from_a_file(fleet: Any) -> None:
    (fleet.folder / "p.txt").write_text("\none prompt\nof two lines\n\n\n  \nanother\n")
    await fleet.run("serve", "completions", prompts_file="p.txt")
    assert [entry.prompt.text for entry in fleet.notes["serve"]] == ["one prompt\nof two lines", "another"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts_file": "gone.txt"}, "cannot be read"),
        ({"prompts_file": "empty.txt"}, "holds no prompts"),
        ({"prompts_file": "latin.txt"}, "not UTF-8"),
        ({"generate": {"text_file": "text.txt", "questions_file": "empty.txt", "passage_words": 5}}, "no questions"),
        ({"generate": {"text_file": "questions.txt", "questions_file": "text.txt"}}, "3 words, too few"),
    ],
)
async def test_files_that_give_no_prompts(fleet: Any, options: dict[str, Any], message: str) -> None:
    (fleet.folder / "empty.txt").write_text(" \n")
    (fleet.folder / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ConfigError, match=message):
        await fleet.run("serve", "completions", **options)


async def test_concurrency_is_a_bound(fleet: Any) -> None:
    await fleet.run("one", "completions", prompts=[f"p{n}" for n in range(9)], instances=["a"])
    assert fleet.clients["a"].most_in_flight == 1
    await fleet.run("many", "completions", prompts=[f"q{n}" for n in range(9)], instances=["a"], concurrency=4)
    assert fleet.clients["a"].most_in_flight == 4
    assert [entry.prompt.text for entry in fleet.notes["many"]] == [f"q{n}" for n in range(9)], "in order"


async def test_without_streaming_there_is_no_ttft(fleet: Any) -> None:
    values = await fleet.run("serve", "completions", prompts=["x"], stream=False)
    assert values["ttft_seconds"] is None
    assert values["latency_seconds"]["p50"] > 0


async def test_only_sampled_requests_carry_a_seed(fleet: Any) -> None:
    await fleet.run("greedy", "completions", prompts=["x"])
    await fleet.run("warm", "completions", prompts=["x"], temperature=0.7)
    greedy, warm = [more for kind, (*_, more) in fleet.books.calls if kind == "complete"]
    assert greedy == {}
    assert isinstance(warm["seed"], int)


async def test_the_first_error_ends_the_workload(fleet: Any) -> None:
    fleet.books.fail.add("b")
    with pytest.raises(UnavailableError, match="b is away"):
        await fleet.run("serve", "completions", prompts=["x", "y", "z"], concurrency=2)


async def test_comparing_with_something_else_is_refused(fleet: Any) -> None:
    await fleet.run("serve", "completions", prompts=["x", "y"])
    await fleet.run("look", "lookup", of="serve")
    with pytest.raises(InvalidRequestError, match="served no completions"):
        await fleet.run("again", "completions", prompts=["x"], compare_to="look")
    with pytest.raises(ConfigError, match="nothing to compare"):
        await fleet.run("again", "completions", prompts=["x"], compare_to="serve")


async def test_a_server_that_tells_nothing_of_its_cache(fleet: Any) -> None:
    client = fleet.clients["a"]
    ours = client.stream_complete

    async def plain(prompt: str, **more: Any) -> Any:
        import dataclasses

        return dataclasses.replace(await ours(prompt, **more), raw={"usage": {"prompt_tokens": 3}})

    client.stream_complete = plain
    values = await fleet.run("serve", "completions", prompts=["x"], instances=["a"])
    assert (values["bytes_before"], values["bytes_after"], values["ratio"]) == (None, None, None)
    assert values["tokens"] == 3
