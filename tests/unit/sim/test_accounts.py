"""What a virtual run reports of itself adds up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.scenario.loader import scenario_from_data
from lmcache_kit.sim.runner import VirtualRun

REQUESTS = 60


def run(folder: Path, **traffic: Any) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    data = {
        "name": "accounts",
        "clock": "virtual",
        "seed": 5,
        "instance_defaults": {
            "engine": {
                "kind": "synthetic",
                "options": {
                    "num_layers": 1,
                    "num_kv_heads": 1,
                    "head_dim": 16,
                    "prefill_seconds_per_token": 0.001,
                    "decode_seconds": 0.01,
                },
            },
            "chunk_size": 16,
        },
        "instances": [{"id": name} for name in "abc"],
        "faults": [{"at": "500ms", "kill": "b"}, {"at": "2s", "restart": "b"}],
        "workloads": [
            {
                "name": "serve",
                "kind": "traffic",
                "contents": {"kind": "shared_prefix", "groups": 4, "prefix_tokens": 64, "output_tokens": 8},
                "arrivals": {"kind": "poisson", "rate": 30},
                "requests": REQUESTS,
                "probe_seconds": 0.2,
                **traffic,
            }
        ],
        "reporters": [],
    }
    report = VirtualRun(scenario_from_data(data), PluginRegistry(allow=[]), folder / "out", progress=print).run()
    lines = (folder / "out" / "events.jsonl").read_text().splitlines()
    return report, [json.loads(line) for line in lines], report["results"][0]


def test_a_retried_request_counts_once(tmp_path: Path) -> None:
    _, events, serve = run(tmp_path, on_failure="retry_elsewhere")
    counts = serve["counts"]
    assert counts["retried"] > 0
    assert (counts["requests"], counts["failed"]) == (REQUESTS, 0)
    requests = [event for event in events if event["event"] == "request"]
    assert sorted(event["position"] for event in requests) == list(range(REQUESTS))
    assert sum(one["requests"] for one in serve["by_instance"].values()) == REQUESTS
    assert serve["prompt_tokens"] == sum(event["prompt_tokens"] for event in requests)
    assert serve["completion_tokens"] == sum(event["completion_tokens"] for event in requests) == REQUESTS * 8


def test_what_is_not_retried_fails_once(tmp_path: Path) -> None:
    _, events, serve = run(tmp_path, on_failure="report")
    counts = serve["counts"]
    assert counts["failed"] > 0
    assert counts["retried"] == 0
    answered = [event for event in events if event["event"] == "request" and event.get("error") is None]
    assert len(answered) + counts["failed"] == REQUESTS


@pytest.mark.parametrize("on_failure", ["report", "retry_elsewhere"])
def test_hits_of_events_follow_admits(tmp_path: Path, on_failure: str) -> None:
    report, events, _ = run(tmp_path, on_failure=on_failure)
    held: dict[tuple[str, str], set[str]] = {}
    for event in events:
        place = held.setdefault((event.get("instance", ""), event.get("location", "")), set())
        if event["event"] == "fault" and event["what"] == "kill":
            for (instance, _), keys in held.items():
                if instance == event["target"]:
                    keys.clear()
        elif event["event"] == "cache_admit":
            assert event["key"] not in place
            place.add(event["key"])
        elif event["event"] == "cache_evict":
            place.remove(event["key"])
        elif event["event"] == "cache_hit":
            assert event["key"] in place
    chunks = {(tier["instance"], tier["location"]): tier["chunks"] for tier in report["tiers"]}
    assert {place: len(keys) for place, keys in held.items() if place in chunks} == chunks
