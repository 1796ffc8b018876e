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
        assert result["rounds"] == 2
        assert result["failure"] is None
        assert result["requests"]
        assert all(len(each["wall_seconds"]) == 2 and each["virtual_seconds"] for each in result["requests"])
        assert result["hit_rate_points"] == 0.0
        assert {"mape", "p50", "p90", "p99"} == set(result["virtual"]) == set(result["one_round"])
        # Of two rounds each is as far from the other as its own share of it.
        assert result["one_round"]["mape"] > 0
        assert result["name"] in done.stdout


def test_one_round_is_no_measurement_of_the_noise(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "fidelity.py"), "--quick", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 2
    assert "--rounds" in done.stderr


def test_every_scenario_of_it_is_valid():
    for path in (BENCHMARKS / "fidelity").glob("*.yaml"):
        validate(load_scenario(path), registry())
