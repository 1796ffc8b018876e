"""Traffic against real processes with the synthetic engine, and the same file on the virtual clock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

CHUNK = 64
SCENARIO: dict[str, Any] = {
    "name": "traffic",
    "seed": 5,
    "instance_defaults": {
        "engine": {
            "kind": "synthetic",
            "model": "synthetic",
            "options": {"num_layers": 1, "num_kv_heads": 1, "head_dim": 8},
        },
        "chunk_size": CHUNK,
        "tiers": [{"kind": "memory", "capacity": "64MiB"}],
    },
    "instances": [{"id": "a"}, {"id": "b"}],
    "workloads": [
        {
            "name": "one_by_one",
            "kind": "traffic",
            "contents": {
                "kind": "shared_prefix",
                "groups": 2,
                "prefix_tokens": 4 * CHUNK,
                "suffix_tokens": {"kind": "uniform", "at_least": 1, "at_most": 2 * CHUNK},
                "output_tokens": 2,
            },
            "arrivals": {"kind": "closed", "concurrency": 1},
            "requests": 20,
        },
        {
            "name": "replay",
            "kind": "traffic",
            "trace": {"path": "trace.jsonl"},
            "time_scale": 20.0,
            "routing": "prefix_aware",
            "max_in_flight": 2,
            "max_output_tokens": 3,
            "timeout_seconds": 60.0,
            "on_failure": "retry_elsewhere",
            "windows": 5,
        },
    ],
    "reporters": [],
}


def run(folder: Path, clock: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    output = folder / clock
    done = subprocess.run(
        [sys.executable, "-m", "lmcache_kit", "run", "s.yaml", "--clock", clock, "--output-dir", str(output)],
        cwd=folder,
        env={**os.environ, "LMCACHE_CHUNK_SIZE": "7"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((output / "report.json").read_text())
    events = [json.loads(line) for line in (output / "events.jsonl").read_text().splitlines()]
    return {result["name"]: result for result in report["results"]}, [
        event for event in events if event["event"] == "request"
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traffic")
    (folder / "s.yaml").write_text(yaml.safe_dump(SCENARIO))
    rows = [
        {"timestamp": 400 * place, "input_length": 700, "output_length": 50, "hash_ids": [place % 3, 100 + place]}
        for place in range(20)
    ]
    (folder / "trace.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_same_requests_hit_the_same_on_both_clocks(folder: Path) -> None:
    wall, wall_events = run(folder, "wall")
    virtual, virtual_events = run(folder, "virtual")

    keys = ("position", "instance", "prompt_tokens", "completion_tokens", "cached_tokens", "attempts")
    first = [
        [tuple(event[key] for key in keys) for event in events if event["workload"] == "one_by_one"]
        for events in (wall_events, virtual_events)
    ]
    assert len(first[0]) == 20
    assert first[0] == first[1], "one after the other, nothing depends on time"
    # Dealt out in turn: what an instance has seen of a group is its prefix, in whole chunks.
    assert {cached for *_, cached, _ in first[0]} == {0, 4 * CHUNK}
    for key in ("counts", "hit_rate", "chunk_token_hit_rate", "block_hit_rate", "cached_tokens_by_location"):
        assert wall["one_by_one"][key] == virtual["one_by_one"][key], key
    assert wall["one_by_one"]["hit_rate"] > 0

    for results, events in ((wall, wall_events), (virtual, virtual_events)):
        values = results["replay"]
        assert values["counts"] | {"requests": 20, "failed": 0} == values["counts"]
        assert (values["prompt_tokens"], values["completion_tokens"]) == (20 * 700, 60)
        assert values["time_scale"] == 20.0
        assert values["staleness"]["lookups"] == 20
        assert sum(window["arrivals"] for window in values["windows"]) == 20
        assert max(row["most_in_flight"] for row in values["by_instance"].values()) <= 2
        replayed = sorted((e for e in events if e["workload"] == "replay"), key=lambda event: event["position"])
        assert [event["arrival"] for event in replayed] == pytest.approx([0.02 * place for place in range(20)])
        assert all(event["ttft_seconds"] >= event["queue_seconds"] >= 0 for event in replayed)
        assert all(event["seconds"] >= event["ttft_seconds"] for event in replayed)
    assert virtual["replay"]["most_late_seconds"] == 0.0


def test_a_virtual_run_is_the_same_every_time(folder: Path) -> None:
    run(folder, "virtual")
    first = [(folder / "virtual" / name).read_bytes() for name in ("report.json", "events.jsonl")]
    run(folder, "virtual")
    assert first == [(folder / "virtual" / name).read_bytes() for name in ("report.json", "events.jsonl")]
