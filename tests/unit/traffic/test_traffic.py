"""The workload on a fleet in virtual time: who gets what when, and what is reported of it."""

from __future__ import annotations

from typing import Any

import pytest

from lmcache_kit.errors import ConfigError, ConflictError, InvalidRequestError, LMCacheKitError, UnavailableError

ALONE = {"kind": "independent", "prompt_tokens": 8, "output_tokens": 3, "block_size": 4}
AT_ONCE = {"kind": "bursts", "size": 10, "every": 1000.0}


def at_once(requests: int, **options: Any) -> dict[str, Any]:
    return {
        "contents": ALONE,
        "requests": requests,
        "arrivals": {"kind": "bursts", "size": requests, "every": 9},
        **options,
    }


# --- a trace ----------------------------------------------------------------------------------------------------------


def test_a_trace_is_played_at_its_times(fleet: Any) -> None:
    trace = fleet.trace((0, 8, 5, [1]), (0.5, 9, 0, [2]), (4, 600, 700, [1, 3]))
    values = fleet.run(trace=trace, max_output_tokens=100)
    a, b = fleet.instances.values()
    assert [(at, tokens, out) for at, tokens, out, _ in a.calls] == [(0.0, 8, 5), (4.0, 600, 100)]
    assert [(at, tokens, out) for at, tokens, out, _ in b.calls] == [(0.5, 9, 1)], "no output is one token"
    assert all(more == {"ignore_eos": True} for *_, more in a.calls)
    assert a.prompts[0] == a.prompts[1][:8], "blocks of one id hold the same tokens"
    assert values["counts"] == {
        "requests": 3,
        "failed": 0,
        "retried": 0,
        "repeated": 0,
        "hits": 0,
        "instances": 2,
    }
    assert (values["seconds"], values["prompt_tokens"], values["completion_tokens"]) == (5.0, 617, 106)
    assert values["source"] == {"kind": "trace", "reader": "mooncake", "requests": 3}
    assert (values["routing"], values["time_scale"], values["most_late_seconds"]) == ("round_robin", 1.0, 0.0)


def test_time_can_be_scaled(fleet: Any) -> None:
    trace = fleet.trace((0, 8, 1, [1]), (3, 8, 1, [1]))
    assert fleet.run(trace=trace, time_scale=2.0)["seconds"] == 2.5
    assert fleet.run(trace=trace, time_scale=0.5)["seconds"] == 7.0
    assert [event["arrival"] for event in fleet.events] == [0.0, 1.5, 0.0, 6.0]


def test_a_traces_bursts_can_be_spread(fleet: Any) -> None:
    trace = fleet.trace(*[(at, 8, 1, [1]) for at in (0, 0, 0, 3, 3)])
    values = fleet.run(trace={**trace, "spread": True})
    arrivals = [event["arrival"] for event in fleet.events]
    assert arrivals == sorted(arrivals)
    assert len(set(arrivals)) == 5
    assert values["source"]["spread"]["bursts"] == 2
    fleet.events.clear()
    fleet.run(trace={**trace, "spread": 0.1})
    assert max(event["arrival"] for event in fleet.events) <= 3.1
    fleet.events.clear()
    fleet.run(trace={**trace, "limit": 2})
    assert [event["arrival"] for event in fleet.events] == [0.0, 0.0]


def test_a_trace_may_be_given_other_arrivals(fleet: Any) -> None:
    trace = fleet.trace((0, 8, 1, [1]), (100, 8, 1, [1]), (200, 8, 1, [1]))
    values = fleet.run(trace=trace, arrivals={"kind": "gamma", "rate": 2, "cv": 0})
    assert [event["arrival"] for event in fleet.events] == [0.0, 0.5, 1.0]
    assert values["source"]["arrivals"] == {"kind": "gamma", "rate": 2.0, "cv": 0.0}
    values = fleet.run(trace=trace, arrivals={"kind": "closed", "concurrency": 1})
    assert [event["arrival"] for event in fleet.events[3:]] == [0.0, 1.0, 2.0]


def test_requests_say_which_turn_of_which_conversation_they_are(fleet: Any) -> None:
    talks = {"kind": "multi_turn", "turns": 3, "user_tokens": 10, "output_tokens": 10, "think_seconds": 1.0}
    fleet.run(contents=talks, arrivals={"kind": "poisson", "rate": 1}, requests=8)
    events = sorted(fleet.events, key=lambda event: event["position"])
    for session in ("c1", "c2", "c3"):
        mine = [event for event in events if event["session"] == session]
        assert [event["turn"] for event in mine] == [0, 1, 2][: len(mine)]
        assert [event["prompt_tokens"] for event in mine] == [10, 30, 50][: len(mine)]
    fleet.events.clear()
    fleet.run(trace=fleet.trace((0, 8, 1, [1])))
    assert [(event["session"], event["turn"]) for event in fleet.events] == [(None, None)]


def test_a_trace_without_prefixes_shares_nothing(fleet: Any) -> None:
    (fleet.folder / "t.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.0000000,40,3\n2023-11-16 18:17:04.0000000,40,3\n"
    )
    fleet.only("a")
    values = fleet.run(trace={"path": "t.csv", "reader": "azure"})
    one, two = fleet.instances["a"].prompts
    assert len(one) == len(two) == 40
    assert one[:4] != two[:4]
    assert values["block_hit_rate"] is None, "there are no blocks to hit"


def test_a_retry_in_a_trace_is_no_first_admission(fleet: Any) -> None:
    hashes = ["0a", "0b"]
    row = (
        '{{"timestamp": {at}, "request_id": "{name}", "model_name": "m", "chunk_size": 4, "seq_len": 8, "dtypes": [], '
    )
    row += '"shapes": [], "chunk_hashes": ["{h[0]}", "{h[1]}"]}}\n'
    lines = [row.format(at=at, name=name, h=hashes) for at, name in ((0, "x"), (10, "y"), (20, "x"))]
    (fleet.folder / "lookup_hashes_0.jsonl").write_text("".join(lines))
    fleet.only("a")
    fleet.instances["a"].cached = lambda tokens: 4 if len(fleet.instances["a"].calls) > 2 else 0
    values = fleet.run(trace={"path": "lookup_hashes_0.jsonl", "reader": "lmcache_lookup"})
    assert values["counts"]["repeated"] == 1
    assert values["hit_rate"] == 4 / 24
    assert values["first_admission_hit_rate"] == 0.0


# --- queue and limits -------------------------------------------------------------------------------------------------


def test_waiting_in_the_queue_is_part_of_ttft(fleet: Any) -> None:
    values = fleet.run(**at_once(6, max_in_flight=1))
    assert all(instance.most_in_flight == 1 for instance in fleet.instances.values())
    events = sorted(fleet.events, key=lambda event: event["position"])
    assert [event["queue_seconds"] for event in events] == [0, 0, 1, 1, 2, 2]
    assert [event["ttft_seconds"] for event in events] == [0.5, 0.5, 1.5, 1.5, 2.5, 2.5]
    assert [event["seconds"] for event in events] == [1, 1, 2, 2, 3, 3]
    assert values["queue_seconds"]["max"] == 2
    assert values["ttft_seconds"]["mean"] == 1.5
    assert values["latency_seconds"]["max"] == 3
    assert values["tpot_seconds"]["p99"] == 0.25
    assert values["by_instance"]["a"]["most_in_flight"] == 1


def test_requests_are_served_in_the_order_in_which_they_came(fleet: Any) -> None:
    fleet.only("a")
    fleet.run(**at_once(20, max_in_flight=3))
    assert [event["position"] for event in fleet.events] == list(range(20))


def test_without_a_limit_nobody_waits(fleet: Any) -> None:
    fleet.run(**at_once(100))
    assert {event["queue_seconds"] for event in fleet.events} == {0.0}
    assert [instance.most_in_flight for instance in fleet.instances.values()] == [50, 50]


def test_a_time_limit_counts_from_the_arrival(fleet: Any) -> None:
    fleet.only("a")
    values = fleet.run(**at_once(4, max_in_flight=1, timeout_seconds=2.5))
    assert values["counts"]["requests"] == 4
    assert values["errors"] == {"RequestTimeoutError": 2}
    events = sorted(fleet.events, key=lambda event: event["position"])
    assert [(event["seconds"], event.get("error")) for event in events] == [
        (1.0, None),
        (2.0, None),
        (2.5, "not answered within 2.5 s"),
        (2.5, "not answered within 2.5 s"),
    ]
    assert [event["attempts"] for event in events] == [1, 1, 1, 0]
    assert fleet.instances["a"].in_flight == 0
    assert values["seconds"] == 2.5


def test_a_time_limit_ends_a_request_whose_lookup_hangs(fleet: Any) -> None:
    fleet.controller.seconds = 1000.0
    values = fleet.run(**at_once(2, max_in_flight=1, timeout_seconds=3.0, routing="prefix_aware"))
    assert values["errors"] == {"RequestTimeoutError": 2}
    assert values["seconds"] == 3.0
    assert fleet.controller.lookups == 2


def test_a_closed_loop_keeps_its_users_busy(fleet: Any) -> None:
    values = fleet.run(contents=ALONE, requests=7, arrivals={"kind": "closed", "concurrency": 3})
    assert [event["arrival"] for event in fleet.events] == [0, 0, 0, 1, 1, 1, 2]
    assert values["seconds"] == 3.0
    assert values["throughput"]["requests_per_second"] == 7 / 3


def test_more_users_than_requests(fleet: Any) -> None:
    values = fleet.run(contents=ALONE, requests=2, arrivals={"kind": "closed", "concurrency": 30})
    assert values["counts"]["requests"] == 2


# --- instances that are away ------------------------------------------------------------------------------------------


def test_a_failure_is_reported_and_changes_no_routing(fleet: Any) -> None:
    fleet.instances["a"].away = [(0.5, 99.0)]
    values = fleet.run(contents=ALONE, requests=6, arrivals={"kind": "gamma", "rate": 1, "cv": 0})
    assert values["errors"] == {"UnavailableError": 3}
    assert values["counts"]["failed"] == 3
    assert values["by_instance"]["a"]["failed"] == 3
    assert values["by_instance"]["b"] | {"requests": 3, "failed": 0} == values["by_instance"]["b"]
    failed = [event for event in fleet.events if "error" in event]
    assert {event["instance"] for event in failed} == {"a"}
    assert failed[0]["error"] == "a is away"
    assert "ttft_seconds" not in failed[0]
    assert sum(window["failed"] for window in values["windows"]) == 3


def test_a_request_goes_elsewhere_and_is_counted_once(fleet: Any) -> None:
    fleet.instances["a"].away = [(0.5, 4.2)]
    values = fleet.run(
        contents=ALONE, requests=10, arrivals={"kind": "gamma", "rate": 1, "cv": 0}, on_failure="retry_elsewhere"
    )
    assert values["counts"] | {"requests": 10, "failed": 0, "retried": 1} == values["counts"]
    assert values["prompt_tokens"] == 80
    assert sum(row["requests"] for row in values["by_instance"].values()) == 10
    assert values["by_instance"]["a"]["times_away"] == 1
    (retried,) = [event for event in fleet.events if event["attempts"] == 2]
    assert (retried["position"], retried["instance"]) == (0, "b")
    assert (retried["queue_seconds"], retried["seconds"]) == (0.5, 1.5), "the attempt that failed was waiting"
    assert [at for at, *_ in fleet.instances["a"].calls] == [0.0, 5.0, 7.0, 9.0], "asked again when it answered"
    assert fleet.instances["a"].health_calls == [0.0, 1.5, 2.5, 3.5, 4.5]


def test_retries_tell_first_admissions_apart(fleet: Any) -> None:
    fleet.instances["a"].away = [(0.5, 99)]
    fleet.instances["b"].cached = lambda tokens: 4
    values = fleet.run(**at_once(2, on_failure="retry_elsewhere"))
    assert values["counts"]["retried"] == 1
    assert values["hit_rate"] == 8 / 16
    assert values["first_admission_hit_rate"] == 4 / 8


def test_nobody_left_to_try(fleet: Any) -> None:
    for instance in fleet.instances.values():
        instance.away = [(0.5, 99)]
    values = fleet.run(
        contents=ALONE,
        requests=6,
        arrivals={"kind": "gamma", "rate": 1, "cv": 0},
        on_failure="retry_elsewhere",
        max_in_flight=1,
    )
    assert values["errors"] == {"UnavailableError": 6}
    assert [event["error"] for event in fleet.events] == ["b is away", *["every instance is away"] * 5]
    assert [event["instance"] for event in fleet.events] == ["b", None, None, None, None, None]


def test_waiting_requests_fail_when_the_last_instance_goes(fleet: Any) -> None:
    fleet.only("a")
    fleet.instances["a"].away = [(0.5, 99)]
    values = fleet.run(**at_once(5, on_failure="retry_elsewhere", max_in_flight=2))
    assert values["errors"] == {"UnavailableError": 5}
    assert values["seconds"] == 0.5


def test_a_closed_loop_with_everything_away_ends(fleet: Any) -> None:
    for instance in fleet.instances.values():
        instance.away = [(0.5, 1e9)]
    values = fleet.run(
        contents=ALONE, requests=5000, arrivals={"kind": "closed", "concurrency": 1}, on_failure="retry_elsewhere"
    )
    assert values["counts"]["failed"] == 5000


def test_an_instance_that_goes_while_prefixes_are_looked_up(fleet: Any) -> None:
    fleet.controller.seconds = 1.0
    fleet.controller.prefix = lambda tokens: {"a": 8}
    fleet.instances["a"].away = [(0.0, 99)]
    fleet.instances["a"].chunk_size = None
    values = fleet.run(**at_once(4, on_failure="retry_elsewhere", max_in_flight=2, routing="prefix_aware"))
    assert values["counts"]["failed"] == 0
    assert values["by_instance"]["b"]["requests"] == 4
    assert fleet.instances["b"].most_in_flight == 2


def test_other_errors_are_reported_and_not_tried_elsewhere(fleet: Any) -> None:
    fleet.instances["a"].error = InvalidRequestError("too long")
    values = fleet.run(**at_once(4, on_failure="retry_elsewhere"))
    assert values["errors"] == {"InvalidRequestError": 2}
    assert values["counts"]["retried"] == 0


@pytest.mark.parametrize("where", ["instance", "controller"])
def test_a_broken_client_ends_the_run(fleet: Any, where: str) -> None:
    if where == "instance":
        fleet.instances["b"].error = ZeroDivisionError("a bug")
    else:
        fleet.controller.error = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError, match="a bug"):
        fleet.run(**at_once(4, routing="prefix_aware", max_in_flight=1))
    assert all(instance.in_flight == 0 for instance in fleet.instances.values())


# --- prefixes ---------------------------------------------------------------------------------------------------------


def test_lookups_route_and_broken_promises_are_counted(fleet: Any) -> None:
    fleet.controller.prefix = lambda tokens: {"b": 8, "elsewhere": 8}
    fleet.instances["b"].cached = lambda tokens: 4 if len(fleet.instances["b"].calls) == 1 else 7
    values = fleet.run(
        contents=ALONE, requests=2, arrivals={"kind": "gamma", "rate": 0.1, "cv": 0}, routing="prefix_aware"
    )
    assert values["by_instance"]["b"]["requests"] == 2
    assert [event["promised_tokens"] for event in fleet.events] == [8, 8]
    assert values["staleness"] == {
        "lookups": 2,
        "lookups_failed": 0,
        "promised_tokens": 16,
        "broken_promises": 1,
        "missing_tokens": 3,  # of 7, since the last token is always computed
        "unpromised_tokens": 0,
    }
    assert values["cached_tokens_by_location"] == {"LocalCPUBackend": 11}


def test_more_than_promised(fleet: Any) -> None:
    fleet.instances["a"].cached = lambda tokens: 4
    values = fleet.run(**at_once(1, routing="prefix_aware"))
    assert values["staleness"] | {"broken_promises": 0, "unpromised_tokens": 4} == values["staleness"]


def test_a_controller_that_is_away_only_costs_its_knowledge(fleet: Any) -> None:
    fleet.controller.error = UnavailableError("the controller is away")
    values = fleet.run(**at_once(4, routing="prefix_aware"))
    assert values["counts"]["failed"] == 0
    assert values["staleness"]["lookups_failed"] == 4


def test_lookups_are_made_when_a_place_is_free(fleet: Any) -> None:
    """What is looked up while a request still waits would be old when it is used."""
    fleet.only("a")
    fleet.controller.seconds = 0.25
    fleet.run(**at_once(3, routing="prefix_aware", max_in_flight=1))
    assert [event["queue_seconds"] for event in fleet.events] == [0.25, 1.5, 2.75]


def test_nothing_is_looked_up_for_other_routings(fleet: Any) -> None:
    values = fleet.run(**at_once(4, routing="least_loaded"))
    assert fleet.controller.lookups == 0
    assert values["staleness"] is None


# --- rates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "cached", "chunk", "blocks"),
    [
        (9, 0, 0, 0),
        (9, 4, 4 / 9, 1 / 3),
        (9, 8, 8 / 9, 3 / 3),  # all but the last token: all chunks, and the partial block
        (9, 6, 4 / 9, 1 / 3),
        (8, 7, 8 / 8, 2 / 2),
        (8, 4, 4 / 8, 1 / 2),
        (3, 2, 0, 1),  # no full chunk: never a hit in LMCache's count
    ],
)
def test_hit_rates(fleet: Any, prompt: int, cached: int, chunk: float, blocks: float) -> None:
    for instance in fleet.instances.values():
        instance.cached = lambda tokens: cached
    values = fleet.run(**at_once(1) | {"contents": {**ALONE, "prompt_tokens": prompt}})
    assert values["hit_rate"] == cached / prompt
    assert values["chunk_token_hit_rate"] == chunk
    assert values["block_hit_rate"] == blocks


def test_what_servers_do_not_tell_is_null(fleet: Any) -> None:
    fleet.only("a")
    fleet.instances["a"].chunk_size = None
    assert fleet.run(**at_once(1))["chunk_token_hit_rate"] is None
    plain = fleet.instances["a"].stream_complete

    async def silent(*args: Any, **more: Any) -> Any:
        done = await plain(*args, **more)
        done.raw.pop("lmcache_kit")
        return done

    fleet.instances["a"].stream_complete = silent
    values = fleet.run(**at_once(2))
    assert (values["bytes_before"], values["bytes_after"], values["ratio"], values["stored_tokens"]) == (None,) * 4


def test_bytes_and_ratio(fleet: Any) -> None:
    values = fleet.run(**at_once(2))
    assert (values["bytes_before"], values["bytes_after"], values["ratio"]) == (32, 16, 2.0)


def test_windows_cover_every_arrival(fleet: Any) -> None:
    for instance in fleet.instances.values():
        instance.cached = lambda tokens: 4
    values = fleet.run(
        contents=ALONE, requests=41, arrivals={"kind": "gamma", "rate": 1, "cv": 0}, windows=4, routing="least_loaded"
    )
    windows = values["windows"]
    assert [window["start_seconds"] for window in windows] == [0, 10, 20, 30]
    assert [window["arrivals"] for window in windows] == [10, 10, 10, 11]
    assert sum(window["prompt_tokens"] for window in windows) == values["prompt_tokens"]
    assert {window["hit_rate"] for window in windows} == {0.5}
    assert {window["ttft_p50_seconds"] for window in windows} == {0.5}


def test_windows_of_one_moment_and_of_nothing(fleet: Any) -> None:
    windows = fleet.run(**at_once(3, windows=2))["windows"]
    assert [window["arrivals"] for window in windows] == [0, 3]
    assert (windows[0]["hit_rate"], windows[0]["ttft_p50_seconds"]) == (None, None)
    (fleet.folder / "empty.jsonl").write_text("")
    values = fleet.run(trace={"path": "empty.jsonl"})
    assert values["counts"]["requests"] == 0
    assert values["ttft_seconds"] is None
    assert values["hit_rate"] is None
    assert len(values["windows"]) == 20


def test_events_can_be_switched_off(fleet: Any) -> None:
    assert fleet.run(**at_once(3, events=False))["counts"]["requests"] == 3
    assert fleet.events == []


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "neither a trace nor contents"),
        ({"trace": {"path": "x"}, "contents": ALONE}, "both a trace and contents"),
        ({"contents": ALONE}, "contents without arrivals and requests"),
        ({"contents": ALONE, "requests": 3}, "contents without arrivals"),
        ({"trace": {"path": "x"}, "requests": 3}, "requests counts made-up requests"),
        (
            {"trace": {"path": "x"}, "arrivals": {"kind": "closed", "concurrency": 1}, "time_scale": 2.0},
            "changes nothing",
        ),
        ({"trace": {"path": "x"}, "instances": ["a", "a"]}, "names one twice"),
        (at_once(1, contents={"kind": "tree"}), "tree"),
        (at_once(1, contents={**ALONE, "prompt_tokens": {"kind": "uniform", "at_least": 5, "at_most": 4}}), "below"),
        (at_once(1, contents={**ALONE, "prompt_tokens": 0}), "prompt_tokens"),
        (at_once(1, routing="fastest"), "routing"),
        (at_once(1, time_scale=0), "time_scale"),
        (at_once(1, arrivals={"kind": "poisson"}), "rate"),
    ],
)
def test_options_that_say_nothing_sensible(fleet: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fleet.workload(**options)


def test_names_are_checked_before_anything_boots(fleet: Any) -> None:
    workload = fleet.workload(trace={"path": "x", "reader": "mooncake"}, instances=["a"])
    assert list(workload.references()) == [("instance", "a")]
    assert [(kind, name) for kind, name, _ in workload.configures()] == [("trace", "mooncake")]


def test_only_some_instances(fleet: Any) -> None:
    fleet.run(**at_once(4, instances=["b"]))
    assert len(fleet.instances["b"].calls) == 4


def test_a_trace_that_cannot_be_read(fleet: Any) -> None:
    with pytest.raises((InvalidRequestError, ConflictError, LMCacheKitError), match=r"none\.jsonl"):
        fleet.run(trace={"path": "none.jsonl"})
