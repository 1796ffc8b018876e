from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

VARY = ("--vary", "instances.a.chunk_size=16,32", "--vary", "seed=1,2")


def test_every_combination_is_a_row(lmcache_kit, scenario: Path, tmp_path: Path) -> None:
    done = lmcache_kit("sweep", scenario, *VARY, "--jobs", 2, "--output-dir", tmp_path / "out", "--format", "json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert "4 of 4" in done.stderr
    assert result == json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [tuple(row["values"].values()) for row in result["cells"]] == [(16, 1), (16, 2), (32, 1), (32, 2)]
    assert {row["status"] for row in result["cells"]} == {"passed"}
    assert {"serve.hit_rate", "serve.ttft_seconds.p50", "serve.seconds"} <= set(result["metrics"])
    with (tmp_path / "out" / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, cell in zip(rows, result["cells"], strict=True):
        assert row["instances.a.chunk_size"] == str(cell["values"]["instances.a.chunk_size"])
        assert float(row["serve.hit_rate"]) == cell["metrics"]["serve.hit_rate"]
        report = json.loads((tmp_path / "out" / cell["output"] / "report.json").read_text())
        assert report["seed"] == cell["values"]["seed"]


def test_a_cell_that_fails_is_a_row_with_its_error(lmcache_kit, scenario: Path, tmp_path: Path) -> None:
    """One cannot be loaded, one is refused by the run, one misses an expectation; one passes."""
    vary = "expect=[{}, {serve.counts.requests: 4}, {serve: 1}]"
    done = lmcache_kit(
        "sweep", scenario, "--vary", vary, "--vary", "instances.a.tiers.0.capacity=1MiB,-3", "--format", "csv",
        "--metric", "serve.hit_rate", "--metric", "serve.nothing", "--output-dir", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 1
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [row["status"] for row in rows] == ["passed", "failed", "missed", "failed", "failed", "failed"]
    assert rows[0]["error"] == ""
    assert "-3 is not a size" in rows[1]["error"]
    assert rows[2]["error"] == "missed serve.counts.requests"
    assert "is not RESULT.PATH" in rows[4]["error"]
    assert float(rows[2]["serve.hit_rate"]) >= 0
    assert rows[1]["serve.hit_rate"] == ""
    assert "warning: no cell has serve.nothing" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--vary", "instances.z.chunk_size=1"), "does not exist"),
        (("--vary", "instances.a.chunksize=1"), "chunksize"),
        (("--vary", "seed"), "is not PATH=V1,V2"),
        (("--vary", "seed=1", "--vary", "seed=2"), "names seed twice"),
        (("--vary", "seed=1", "--metric", "srve.hit_rate"), "no workload is called"),
        (("--vary", "seed=1", "--set", "nothing=1"), "nothing"),
    ],
)
def test_what_no_cell_can_run_is_told_before_anything_runs(
    lmcache_kit, scenario: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = lmcache_kit("sweep", scenario, *arguments, "--output-dir", tmp_path / "out")
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_is_left_alone(lmcache_kit, scenario: Path, tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "mine").touch()
    done = lmcache_kit("sweep", scenario, "--vary", "seed=1", "--output-dir", tmp_path)
    assert done.returncode == 2
    assert (tmp_path / "cells" / "mine").exists()


def test_the_table_names_what_is_the_same_everywhere(lmcache_kit, scenario: Path, tmp_path: Path) -> None:
    """Twice into one folder, so that the second replaces the first; the number of jobs changes nothing."""
    arguments = ("sweep", scenario, "--vary", "instances.a.chunk_size=16,64", "--output-dir", tmp_path / "out")
    done = lmcache_kit(*arguments, "--jobs", 2)
    first = (tmp_path / "out" / "sweep.json").read_bytes()
    again = lmcache_kit(*arguments, "--jobs", 1)
    assert (tmp_path / "out" / "sweep.json").read_bytes() == first
    assert again.stdout == done.stdout
    assert done.returncode == 0, done.stderr
    assert "in every cell: " in done.stdout
    assert [line.split()[:2] for line in done.stdout.splitlines() if line.startswith("      chunk_size")]


def children(pid: int) -> list[int]:
    """Processes that ``pid`` is the parent of, and those below."""
    below = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/stat") if _parent(path) == pid]
    return below + [each for child in below for each in children(child)]


def _parent(stat: Path) -> int | None:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_ctrl_c_ends_the_runs_and_keeps_what_there_is(scenario: Path, tmp_path: Path) -> None:
    data = yaml.safe_load(scenario.read_text())
    data["instances"][0]["engine"]["options"]["prefill_seconds_per_token"] = 0.05
    slow = tmp_path / "slow.yaml"
    slow.write_text(yaml.safe_dump(data | {"clock": "wall"}))
    command = [sys.executable, "-m", "lmcache_kit", "sweep", slow, "--vary", "clock=virtual,wall"]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([*command, "--output-dir", tmp_path / "out"], stdout=file, stderr=file)
    try:
        events = tmp_path / "out" / "cells" / "0001" / "events.jsonl"
        while not (events.exists() and b"workload_started" in events.read_bytes()):
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        below = children(process.pid)
        assert len(below) >= 3, "the run, its controller and its instance"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 128 + signal.SIGINT
    finally:
        process.kill()
        process.wait()
    assert not [pid for pid in below if os.path.exists(f"/proc/{pid}")]
    rows = json.loads((tmp_path / "out" / "sweep.json").read_text())["cells"]
    assert [row["status"] for row in rows] == ["passed", "not run"]
    assert rows[0]["metrics"]["serve.hit_rate"] is not None
