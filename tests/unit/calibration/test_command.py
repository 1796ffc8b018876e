"""``lmcache-kit calibrate``: what it takes, shows and writes."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from lmcache_kit.cli.app import app
from lmcache_kit.errors import ConfigError
from lmcache_kit.sim.costs import load_costs


def call(*arguments):
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)])


def test_from_a_run_that_has_been(known, tmp_path):
    done = call("--from", known, "--output-dir", tmp_path / "out", "--format", "json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["costs"] == str(tmp_path / "out" / "costs.json")
    assert load_costs("costs.json", tmp_path / "out").request_seconds == pytest.approx(0.004, rel=0.05)
    (error,) = facts["errors"]
    assert error["requests"][-1]["ttft"]["mape"] < 1.0
    assert facts["wall"] == [str(known)]
    assert {"name", "value", "samples", "kept_because"} == set(facts["figures"][0])
    assert (tmp_path / "out" / "virtual" / "report.json").exists()


def test_the_table_names_what_was_kept_and_the_error(known, tmp_path):
    done = call("--from", known, "--output-dir", tmp_path / "out", "--output", tmp_path / "deep" / "mine.json")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "deep" / "mine.json").exists()
    assert not (tmp_path / "out" / "costs.json").exists()
    for text in ("synthetic/m.prefill_token", "restart_seconds", "note: 4 first requests", "MAPE", "cache decisions"):
        assert text in done.stdout
    (row,) = [line for line in done.stdout.splitlines() if "restart_seconds" in line]
    assert "not fitted" in row


def test_warm_up_is_a_choice(known, tmp_path):
    done = call("--from", known, "--output-dir", tmp_path / "out", "--warm-up", 0, "--format", "json")
    assert not any("first requests" in note for note in json.loads(done.stdout)["notes"])


@pytest.mark.parametrize("arguments", [(), ("quickstart", "--from", "somewhere")])
def test_a_scenario_or_a_run(arguments):
    found = call(*arguments).exception
    assert isinstance(found, ConfigError)
    assert "a scenario or --from" in found.message


def test_several_runs_that_have_been(known, tmp_path):
    done = call("--from", known, "--from", known, "--output-dir", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert done.stdout.count(f"against {known}:") == 2
    assert done.stdout.count("cache decisions: the same") == 2


@pytest.mark.parametrize("change", [("--set", "seed=3"), ("--runs", "2")])
def test_a_run_that_has_been_takes_no_changes(known, change):
    found = call("--from", known, *change).exception
    assert isinstance(found, ConfigError)
    assert change[0] in found.message


def test_what_is_no_output_is_refused(tmp_path):
    assert isinstance(call("--from", tmp_path).exception, ConfigError)
