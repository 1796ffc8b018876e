"""The shipped scenario failover on both clocks, and runs whose faults cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmcache_kit.cli import main

FAST = """
name: fast
instance_defaults: {engine: synthetic, chunk_size: 16, tiers: [{kind: memory, capacity: 8MiB}]}
instances: [{id: a}]
"""


def run(capsys: pytest.CaptureFixture[str], output: Path, *arguments: str) -> tuple[int, Any, str]:
    """Exit status, report and stderr of `lmcache-kit run`."""
    status = main(["run", *arguments, "--output-dir", str(output), "--format", "json"])
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if captured.out else None, captured.err


def events(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "events.jsonl").read_text().splitlines()]


def faults(output: Path) -> list[tuple[str, str, str]]:
    return [(e["what"], e["target"], e["action"]) for e in events(output) if e["event"] == "fault"]


@pytest.mark.parametrize("clock", ["virtual", "wall"])
def test_the_shipped_scenario(clock: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    status, report, stderr = run(capsys, output, "failover", "--clock", clock)
    assert status == 0, stderr
    assert report["status"] == "passed"
    assert faults(output) == [("kill", "b", "begin"), ("restart", "b", "begin"), ("restart", "b", "end")] * 2
    kill, restart, back, *_ = (e["time"] for e in events(output) if e["event"] == "fault")
    assert kill < restart < back
    served = [
        (e["time"], e["instance"]) for e in events(output) if e["event"] == "request" and e["workload"] == "serve"
    ]
    assert {name for at, name in served if restart < at < back} <= {"a", "c"}
    # Cache events of all lives of the instance are there, and none of the time between.
    lives = [e["time"] for e in events(output) if e["event"].startswith("cache_") and e.get("instance") == "b"]
    assert any(at < kill for at in lives)
    assert any(at > back for at in lives)
    assert not any(kill + 0.1 < at < restart for at in lives)


def test_the_virtual_run_is_the_same_every_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        status, _, stderr = run(capsys, tmp_path / name, "failover", "--clock", "virtual")
        assert status == 0, stderr
    for file in ("report.json", "events.jsonl"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_a_workload_that_needs_what_was_killed_fails_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One real run that fails: killed at its start, asked, and a fault that never comes."""
    scenario = tmp_path / "fast.yaml"
    scenario.write_text(
        FAST
        + "faults: [{at: 0s, kill: a, after: serve}, {at: 1h, restart: a, after: serve}]\n"
        + "workloads: [{name: serve, kind: completions, prompts: [hello]}]\n"
    )
    status, _, stderr = run(capsys, tmp_path / "out", str(scenario))
    assert status == 1
    assert "workload serve: the instance at http://127.0.0.1" in stderr
    assert "cannot be reached" in stderr
    assert "SIGKILL" not in stderr, "the end of what was killed on purpose is no news"
    assert "the run ended before its restart of a" in stderr
    assert faults(tmp_path / "out") == [("kill", "a", "begin")]
    assert json.loads((tmp_path / "out" / "report.json").read_text())["status"] == "failed"
