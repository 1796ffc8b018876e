from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def runs(tmp_path_factory, lmcache_kit, scenario: Path) -> Path:
    """Virtual runs: ``one`` and ``same`` of one seed, ``other`` with larger chunks, ``failed`` before any request."""
    folder = tmp_path_factory.mktemp("runs")
    for name, more in (("one", ()), ("same", ()), ("other", ("--set", "instances.a.chunk_size=32"))):
        done = lmcache_kit("run", scenario, "--output-dir", folder / name, *more)
        assert done.returncode == 0, done.stderr
    return folder


def test_two_runs_of_a_seed_are_equal_to_the_byte(lmcache_kit, runs: Path) -> None:
    done = lmcache_kit("compare", runs / "one", runs / "same", "--times")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("equal\n")
    assert "report.json: the same, byte for byte" in done.stdout
    assert "MAPE" in done.stdout
    for name in ("report.json", "report.html", "events.jsonl"):
        assert (runs / "one" / name).read_bytes() == (runs / "same" / name).read_bytes(), name


def test_the_first_difference_is_shown_with_what_stands_around_it(lmcache_kit, runs: Path) -> None:
    done = lmcache_kit("compare", runs / "one", runs / "other")
    assert done.returncode == 1
    assert done.stdout.startswith("DIFFERENT\n")
    assert "first difference: a, decision " in done.stdout
    assert "warning: the scenarios differ in instances.a.chunk_size" in done.stderr


def test_json_is_the_only_output(lmcache_kit, runs: Path) -> None:
    done = lmcache_kit("compare", runs / "one", runs / "other", "--format", "json", "--bytes", "--per", "tier")
    assert done.returncode == 1
    facts = json.loads(done.stdout)
    assert facts["equal"] is False
    assert facts["divergence"]["location"] == "LocalCPUBackend"


@pytest.mark.parametrize("arguments", [("nowhere",), ("one", "--per", "fleet")])
def test_what_cannot_be_compared_is_status_2(lmcache_kit, runs: Path, arguments: tuple[str, ...]) -> None:
    done = lmcache_kit("compare", runs / "one", runs / arguments[0], *arguments[1:])
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")


def test_a_time_line_of_a_run(lmcache_kit, runs: Path, tmp_path: Path) -> None:
    before = (runs / "one" / "report.json").read_bytes()
    done = lmcache_kit("report", runs / "one", "--perfetto", tmp_path / "trace.json")
    assert done.returncode == 0, done.stderr
    entries = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {"serve 0", "again 2", "prefill", "decode"} <= {each["name"] for each in entries if each["ph"] == "X"}
    assert (runs / "one" / "report.json").read_bytes() == before
