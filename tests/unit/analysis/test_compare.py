from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from lmcache_kit.analysis import compare_runs
from lmcache_kit.analysis.sequences import BLOCK, Per
from lmcache_kit.calibration import request_pairs
from lmcache_kit.errors import ConfigError


def test_names_of_chunks_and_times_do_not_count(make_run, decide, ask) -> None:
    a = make_run("a", [decide("miss", "x"), decide("admit", "x"), decide("admit", "y"), decide("hit", "x"), ask(0)])
    b = make_run("b", [ask(0), decide("miss", "p"), decide("admit", "p"), decide("admit", "q"), decide("hit", "p")])
    facts = compare_runs(a, b)
    assert facts["equal"]
    assert facts["counts"]["cache_admit"] == {"a": 2, "b": 2}
    assert facts["sequences"] == [{"instance": "a", "a": 4, "b": 4, "equal": True, "first_difference": None}]


def test_another_chunk_is_a_difference(make_run, decide) -> None:
    a = make_run("a", [decide("admit", "x"), decide("admit", "y"), decide("hit", "x")])
    b = make_run("b", [decide("admit", "x"), decide("admit", "y"), decide("hit", "y")])
    found = compare_runs(a, b)["divergence"]
    assert found["index"] == 2
    assert [each["chunk"] for each in found["before"]] == [0, 1]
    assert (found["a"][0]["chunk"], found["b"][0]["chunk"]) == (0, 1)


@pytest.mark.parametrize("change", [{"cause": "capacity"}, {"location": "disk"}, {"event": "cache_evict"}])
def test_what_counts_of_a_decision(make_run, decide, change: dict[str, Any]) -> None:
    a = make_run("a", [decide("admit", "x"), decide("hit", "x")])
    b = make_run("b", [decide("admit", "x"), decide("hit", "x") | change])
    facts = compare_runs(a, b)
    assert not facts["equal"]
    assert facts["divergence"]["index"] == 1


def test_bytes_count_when_asked_for(make_run, decide) -> None:
    a = make_run("a", [decide("admit", "x", bytes=10)])
    b = make_run("b", [decide("admit", "x", bytes=11)])
    assert compare_runs(a, b)["equal"]
    assert not compare_runs(a, b, with_bytes=True)["equal"]


def test_turns_of_conversations_are_matched_whatever_position_they_came_at(make_run, ask) -> None:
    def turn(position: int, session: str, turn: int, tokens: int) -> dict[str, Any]:
        return ask(position, session=session, turn=turn, prompt_tokens=tokens, ttft_seconds=tokens / 100)

    a = [turn(0, "c1", 0, 10), turn(1, "c2", 0, 20), turn(2, "c1", 1, 30), turn(3, "c2", 1, 40), ask(4)]
    b = [turn(1, "c2", 0, 20), turn(0, "c1", 0, 10), turn(2, "c2", 1, 40), turn(3, "c1", 1, 30), ask(4)]
    folders = make_run("a", a), make_run("b", b)
    facts = compare_runs(*folders, with_times=True)
    assert facts["requests"]["different"] == 0
    assert facts["times"]["requests"][0]["ttft"]["mape"] == 0
    assert sorted(pair["prompt_tokens"] for pair in request_pairs(*folders)) == [10, 20, 30, 40, 100]
    assert all(mine == its for pair in request_pairs(*folders) for mine, its in [pair["ttft_seconds"]])
    other = compare_runs(folders[0], make_run("c", [*b[:3], turn(3, "c1", 1, 31), ask(4)]))["requests"]
    assert other["different"] == 1
    assert other["first_difference"]["position"] == 2
    assert other["first_difference"]["a"]["prompt_tokens"] == 30


def test_the_order_between_instances_does_not_count(make_run, decide) -> None:
    of_a = [decide("admit", f"k{i}") for i in range(5)]
    of_b = [decide("admit", f"k{i}", instance="b") for i in range(5)]
    mixed = [each for pair in zip(of_b, of_a, strict=True) for each in pair]
    assert compare_runs(make_run("a", of_a + of_b), make_run("b", mixed))["equal"]


def test_the_order_between_tiers_counts_unless_each_tier_is_compared(make_run, decide) -> None:
    up, down = decide("admit", "x"), decide("admit", "x", location="disk")
    a, b = make_run("a", [up, down]), make_run("b", [down, up])
    assert compare_runs(a, b)["divergence"]["index"] == 0
    facts = compare_runs(a, b, per=Per.TIER)
    assert facts["equal"]
    assert [each["location"] for each in facts["sequences"]] == ["cpu", "disk"]


def test_chunks_are_the_same_across_instances(make_run, decide) -> None:
    """Each instance alone looks the same: it admits one chunk. In one run they share it, in the other they do not."""
    a = make_run("a", [decide("admit", "x"), decide("admit", "x", instance="b")])
    b = make_run("b", [decide("admit", "x"), decide("admit", "y", instance="b")])
    for facts in (compare_runs(a, b), compare_runs(b, a)):
        assert not facts["equal"]
        assert facts["renamed"] == {"instance": "b"}


@pytest.mark.parametrize("length", [BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
@pytest.mark.parametrize("where", ["start", "middle", "end", "cut"])
def test_the_first_difference_is_found_in_any_block(make_run, decide, length: int, where: str) -> None:
    rng = random.Random(length)
    events = [decide("hit", f"k{rng.randrange(40)}") for _ in range(length)]
    at = {"start": 0, "middle": length // 2, "end": length - 1, "cut": length - 1}[where]
    other = events[:at] if where == "cut" else [*events[:at], events[at] | {"cause": "!"}, *events[at + 1 :]]
    # Later differences must not hide the first one.
    if where == "start":
        other[-1] = other[-1] | {"cause": "!"}
    facts = compare_runs(make_run("a", events), make_run("b", other))
    found = facts["divergence"]
    assert found["index"] == at == facts["sequences"][0]["first_difference"]
    assert [each["index"] for each in found["before"]] == list(range(max(at - 3, 0), at))
    assert found["a"][0]["index"] == at
    assert (found["b"] == []) == (where == "cut")


def test_of_several_differences_the_earliest_is_shown(make_run, decide) -> None:
    events = [decide("hit", "x", instance=name) for name in "cbacba"]
    other = [*events[:3], events[3] | {"cause": "!"}, events[4], events[5] | {"cause": "!"}]
    facts = compare_runs(make_run("a", events), make_run("b", other))
    assert facts["divergence"]["instance"] == "c"
    assert [each["equal"] for each in facts["sequences"]] == [False, True, False]


def test_an_instance_that_one_run_lacks(make_run, decide) -> None:
    a = make_run("a", [decide("hit", "x"), decide("hit", "x", instance="b")])
    b = make_run("b", [decide("hit", "x")])
    for facts, there in ((compare_runs(a, b), "a"), (compare_runs(b, a), "b")):
        assert facts["divergence"]["instance"] == "b"
        assert [each["event"] for each in facts["divergence"][there]] == ["cache_hit"]


def test_requests_are_matched_by_workload_and_position(make_run, ask) -> None:
    a = make_run("a", [ask(0), ask(1), ask(2)])
    b = make_run("b", [ask(2), ask(0), ask(1, cached_tokens=0)])
    requests = compare_runs(a, b)["requests"]
    assert (requests["matched"], requests["different"]) == (3, 1)
    assert requests["first_difference"]["position"] == 1
    assert requests["first_difference"]["b"]["cached_tokens"] == 0


def test_a_request_that_one_run_lacks_differs(make_run, ask) -> None:
    facts = compare_runs(make_run("a", [ask(0), ask(1)]), make_run("b", [ask(0)]))
    assert not facts["equal"]
    assert facts["requests"]["only_a"] == 1
    assert facts["requests"]["first_difference"]["b"] is None


def test_a_request_without_an_answer_differs_from_one_with(make_run, ask) -> None:
    lost = {"event": "request", "position": 0, "instance": None, "prompt_tokens": 100, "seconds": 1.0, "error": "gone"}
    assert not compare_runs(make_run("a", [ask(0)]), make_run("b", [lost]))["equal"]
    assert compare_runs(make_run("c", [lost]), make_run("d", [lost | {"error": "away"}]))["equal"]


def test_a_workload_that_repeats_its_positions_and_one_without(make_run, ask) -> None:
    events = [ask(0), ask(0, cached_tokens=1), ask(None), ask(None, cached_tokens=2)]
    assert compare_runs(make_run("a", events), make_run("b", events))["requests"]["matched"] == 4
    swapped = [events[1], events[0], *events[2:]]
    assert compare_runs(make_run("c", events), make_run("d", swapped))["requests"]["different"] == 2


def test_times_of_matched_requests(make_run, ask) -> None:
    a = make_run("a", [ask(0, ttft_seconds=1.0), ask(1, ttft_seconds=2.0), ask(2, ttft_seconds=0.0)])
    b = make_run(
        "b",
        [ask(2, ttft_seconds=0.5), ask(1, ttft_seconds=1.0, cached_tokens=90), ask(0, ttft_seconds=1.25)],
    )
    (entry,) = compare_runs(a, b, with_times=True)["times"]["requests"]
    assert entry["ttft"]["requests"] == 3
    assert entry["ttft"]["left_out"] == 1
    assert entry["ttft"]["mape"] == pytest.approx((25 + 50) / 2)
    assert entry["ttft"]["error_percentiles"]["p50"] == pytest.approx(37.5)
    assert entry["ttft"]["percentile_error"]["p50"] == pytest.approx(0.0)
    assert entry["hit_rate"]["points"] == pytest.approx(10.0)


def test_times_of_results(make_run, ask) -> None:
    def results(times: float, rate: float) -> dict[str, Any]:
        found = {"name": "w", "ttft_seconds": {"p50": times, "p90": times, "p99": 0.0}, "hit_rate": rate}
        return {"results": [found, {"name": f"only-{times}"}]}

    a, b = make_run("a", [ask(0)], report=results(2.0, 0.5)), make_run("b", [ask(0)], report=results(3.0, 0.25))
    (entry,) = compare_runs(a, b, with_times=True)["times"]["results"]
    assert entry["ttft_ratio"] == {"p50": 1.5, "p90": 1.5}
    assert entry["hit_rate"]["points"] == -25.0


def test_several_workloads_are_also_measured_together(make_run, ask) -> None:
    events = [ask(0), ask(0, workload="v")]
    entries = compare_runs(make_run("a", events), make_run("b", events), with_times=True)["times"]["requests"]
    assert [each["workload"] for each in entries] == ["w", "v", None]
    assert entries[2]["requests"] == 2


def test_scenarios_that_differ_are_a_warning_with_their_keys(make_run, ask) -> None:
    a = make_run("a", [ask(0)], scenario={"seed": 1, "instances": [{"id": "a", "chunk_size": 64}]})
    b = make_run("b", [ask(0)], scenario={"clock": "virtual", "instances": [{"id": "a", "chunk_size": 128}]})
    facts = compare_runs(a, b)
    assert facts["equal"]
    assert facts["scenario_differences"] == [
        {"path": "instances.a.chunk_size", "a": 64, "b": 128},
        {"path": "seed", "a": 1},
    ]
    assert facts["warnings"] == ["the scenarios differ in instances.a.chunk_size, seed"]


def test_reports_of_virtual_runs_must_be_the_same_bytes(make_run, ask) -> None:
    virtual, text = {"clock": "virtual"}, {"clock": "virtual"}
    a = make_run("a", [ask(0)], report=virtual | {"results": [{"name": "w", "x": [1, 2]}]}, scenario=text)
    b = make_run("b", [ask(0)], report=virtual | {"results": [{"name": "w", "x": [1, 2.0]}]}, scenario=text)
    facts = compare_runs(a, b)
    assert not facts["equal"]
    assert facts["report"]["first_difference"] == {"path": "results.w.x.1", "a": 2, "b": 2.0}
    assert compare_runs(a, a)["report"]["identical"] is True


def test_reports_in_another_folder_are_still_held_to_the_byte(make_run, ask) -> None:
    virtual = {"clock": "virtual"}
    a = make_run("a", [ask(0)], report=virtual, scenario=virtual | {"base_dir": "/here"})
    b = make_run("b", [ask(0)], report=virtual | {"status": "missed"}, scenario=virtual | {"base_dir": "/there"})
    assert compare_runs(a, b)["report"]["identical"] is False


def test_of_wall_runs_times_and_the_machine_are_passed_over(make_run, ask) -> None:
    def entry(factor: float) -> dict[str, Any]:
        result = {"name": "w", "ttft_seconds": {"p50": factor}, "seconds": factor, "bytes_after": factor, "tokens": 5}
        return {"host": {"cpus": factor}, "started_unix": factor, "results": [result]}

    a, b = make_run("a", [ask(0)], report=entry(1.0)), make_run("b", [ask(0)], report=entry(2.0))
    facts = compare_runs(a, b)
    assert facts["report"] == {
        "compared": True,
        "identical": None,
        "first_difference": None,
        "passed_over": "times, the machine and bytes",
    }
    assert compare_runs(a, b, with_bytes=True)["report"]["first_difference"]["path"] == "results.w.bytes_after"


def test_reports_of_other_seeds_are_not_compared(make_run, ask) -> None:
    a, b = make_run("a", [ask(0)]), make_run("b", [ask(0)], report={"seed": 2})
    assert compare_runs(a, b)["report"]["compared"] is False


def test_a_run_that_failed_is_told(make_run, ask) -> None:
    a, b = make_run("a", [ask(0)]), make_run("b", [ask(0)], report={"status": "failed", "error": "no disk"})
    assert compare_runs(a, b)["warnings"] == ["B failed: no disk"]


def test_two_runs_without_anything_are_not_equal(make_run) -> None:
    nothing = [{"event": "fleet_ready"}]
    with pytest.raises(ConfigError, match="neither requests nor cache decisions"):
        compare_runs(make_run("a", nothing), make_run("b", nothing))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"time": 0.0, "event": "request"}\n{"time"', "line 2, ends in the middle"),
        ('{"time": 0.0, "event": "request"}\n[]\n', "line 2, is not an event"),
        ('{"time": "now", "event": "request"}\n', "line 1, is not an event"),
        ("\n", "line 1, is not an event"),
        ('{"event": "request"}\n', "line 1, is not an event"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(make_run, ask, lines: str, message: str) -> None:
    a, b = make_run("a", [ask(0)]), make_run("b", [ask(0)])
    (b / "events.jsonl").write_text(lines)
    with pytest.raises(ConfigError, match=message):
        compare_runs(a, b)


@pytest.mark.parametrize("missing", ["events.jsonl", "report.json", "scenario.yaml"])
def test_a_folder_that_is_no_run(make_run, ask, tmp_path: Path, missing: str) -> None:
    a, b = make_run("a", [ask(0)]), make_run("b", [ask(0)])
    (b / missing).unlink()
    with pytest.raises(ConfigError, match=r"b"):
        compare_runs(a, b)
    with pytest.raises(ConfigError, match="is not a directory"):
        compare_runs(a, tmp_path / "nowhere")


def test_the_answer_is_json(make_run, decide, ask) -> None:
    a = make_run("a", [decide("hit", "x"), ask(0)])
    b = make_run("b", [decide("hit", "x", cause="!"), ask(1)])
    facts = compare_runs(a, b, with_times=True)
    assert json.loads(json.dumps(facts)) == facts
