"""The benchmark of fidelity runs, and writes what it promises. How good the figures are is not looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from lmcache_kit.plugins import registry
from lmcache_kit.scenario import load_scenario, validate

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def test_the_benchmark_runs(tmp_path):
    output = tmp_path / "fidelity.json"
    command = [sys.executable, str(BENCHMARKS / "fidelity.py"), "--quick", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(output.read_text())
    assert document["quick"] is True
    assert document["costs"]["engines"]
    own, other = document["results"]
    assert (own["name"], own["kind"]) == ("synthetic", "its own costs")
    assert (other["name"], other["kind"]) == ("tiers", "others' costs")
    for result in (own, other):
        assert len(result["requests"]) == result["metrics"]["ttft_seconds_wall"]["count"] > 0
        assert result["error"]["requests"][-1]["hit_rate_points"] == 0.0
        assert result["name"] in done.stdout


def test_every_scenario_of_it_is_valid():
    for path in (BENCHMARKS / "fidelity").glob("*.yaml"):
        validate(load_scenario(path), registry())
