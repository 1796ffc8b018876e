"""Every benchmark runs, quickly, and writes what it promises. Speed is not looked at: a busy machine is no failure."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def run(name: str, tmp_path: Path, *more: str) -> tuple[dict[str, Any], str]:
    """The result file and the table of a quick run."""
    output = tmp_path / "deep" / f"{name}.json"
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "--output", str(output), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text()), done.stdout


def check_document(document: dict[str, Any], name: str) -> None:
    assert document["schema_version"] == 1
    assert document["benchmark"] == name
    assert document["quick"] is True
    assert document["hardware"]["cpu"]
    assert document["hardware"]["cores"] >= 1
    assert {"python", "lmcache-kit", "numpy"} <= document["versions"].keys()
    assert document["parameters"]
    assert set(document["load_average"]) == {"before", "after"}
    assert document["results"]
    for result in document["results"]:
        assert result["name"]
        assert result["metrics"]
        for metric, facts in result["metrics"].items():
            assert facts["count"] >= len(facts["samples"]) > 0, metric
            assert all(math.isfinite(sample) and sample >= 0 for sample in facts["samples"])
            assert facts["min"] <= facts["p50"] <= facts["p99"] <= facts["max"]
            assert facts["min"] <= facts["median"] <= facts["max"]
            # Shares of CPU time may round to nothing in so short a run; rates and durations may not.
            assert facts["median"] > 0 or metric in {"server_cpu", "generator_busy", "sending_share"}


def test_controller(tmp_path: Path) -> None:
    document, printed = run("controller", tmp_path)
    check_document(document, "controller")
    found = [(result["name"], result["side"], result["size"]) for result in document["results"]]
    assert found == [*(("lookup", "ours", size) for size in (12, 256, 2048, 8192)), ("admit", "ours", 500)]
    assert "lookups/s" in printed
    assert "admits/s" in printed


def test_new_plugin(tmp_path: Path) -> None:
    document, printed = run("new_plugin", tmp_path, "--kind", "reporter")
    check_document(document, "new_plugin")
    [result] = document["results"]
    assert result["name"] == "reporter"
    assert result["tests_passed"] == 3
    metrics = {name: facts["median"] for name, facts in result["metrics"].items()}
    steps = metrics["new_seconds"] + metrics["install_seconds"] + metrics["tests_seconds"]
    assert metrics["to_green_seconds"] == pytest.approx(steps)
    assert "to green s" in printed


def test_a_peer_that_does_not_start_is_reported(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "controller.py"), "--quick", "--peer-python", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode != 0
    assert "peer did not start" in done.stderr
    assert "lmcache" in done.stderr


def test_tiers(tmp_path: Path) -> None:
    document, printed = run("tiers", tmp_path)
    check_document(document, "tiers")
    stores = {(r["backend"], r["method"]): r for r in document["results"] if r["name"] == "store"}
    assert len(stores) == 6
    assert all(row["tokens"] > 0 and row["stored_bytes"] > 0 for row in stores.values())
    assert stores["disk", "fp8"]["stored_bytes"] < stores["disk", "naive"]["stored_bytes"]
    assert "by reference" in printed


def test_transports(tmp_path: Path) -> None:
    document, printed = run("transports", tmp_path)
    check_document(document, "transports")
    assert {result["name"] for result in document["results"]} == {"inproc", "zmq", "shm"}
    for result in document["results"]:
        assert ("bytes_per_second" in result["metrics"]) is not result["by_reference"]
    assert "by reference" in printed


def test_codecs(tmp_path: Path) -> None:
    document, _ = run("codecs", tmp_path, "--method", "naive", "--method", "zstd", "--method", "fp8")
    check_document(document, "codecs")
    rows = {result["name"]: result for result in document["results"]}
    assert rows["naive"]["encoded_bytes"] == rows["naive"]["raw_bytes"]
    assert rows["naive"]["nmse"] == rows["zstd"]["nmse"] == 0
    assert 0 < rows["fp8"]["nmse"] < 0.01


def test_an_unknown_codec_is_an_error(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "codecs.py"), "--quick", "--method", "zzip"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode != 0
    assert "zzip" in done.stderr


@pytest.mark.parametrize("name", ["controller", "tiers", "transports", "codecs"])
def test_help_says_what_is_measured(name: str) -> None:
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=True)
    assert "--output" in done.stdout
    assert "--quick" in done.stdout
