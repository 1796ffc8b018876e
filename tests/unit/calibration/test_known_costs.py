"""Costs that made a run are found again in its events, and leave no error."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from lmcache_kit.calibration import calibrate, costs_document, fit_costs, judged, request_pairs
from lmcache_kit.errors import ConfigError
from lmcache_kit.plugins import registry
from lmcache_kit.sim.costs import load_costs

CPU, DISK = "LocalCPUBackend", "LocalDiskBackend"


@pytest.fixture(scope="module")
def findings(known):
    return fit_costs([known])


@pytest.fixture(scope="module")
def fitted(findings):
    return {figure.name: figure.value for figure in findings.figures if figure.samples}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prefill_base", 0.005),
        ("prefill_pass", 0.004),
        ("prefill_token", 6e-5),
        ("prefill_attention", 8e-8),
        ("decode_base", 0.003),
        ("decode_context", 1e-6),
        ("copy_token", 8e-7),
        ("start_token", 1e-6),
        ("tokenize_token", 2e-6),
        ("handoff", 0.0003),
    ],
)
def test_the_engines_steps_are_found(fitted, name, value):
    assert fitted[f"engines.synthetic/m.{name}"] == pytest.approx(value, rel=0.02)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("codecs.naive.ratio", 1.0),
        ("codecs.zstd.ratio", 1.2),
        ("codecs.naive.decode_gbps", 0.7),
        ("codecs.zstd.decode_gbps", 0.35),
        ("codecs.zstd.encode_gbps", 0.2),
        ("codecs.zstd.chunk_seconds", 0.003),
        (f"tiers.{DISK}.read_gbps", 0.9),
        (f"tiers.{DISK}.read_seconds", 5e-4),
        (f"tiers.{DISK}.write_gbps", 0.4),
        (f"tiers.{DISK}.write_seconds", 1e-3),
        ("load_seconds", 0.0002),
        ("save_seconds", 0.002),
        ("recode_seconds", 0.001),
        ("request_seconds", 0.004),
        ("request_token", 4e-7),
        ("lookup_seconds", 0.002),
        ("call_seconds", 0.003),
    ],
)
def test_stores_codecs_and_calls_are_found(fitted, name, value):
    assert fitted[name] == pytest.approx(value, rel=0.08)


def test_what_cannot_be_told_stays_and_is_named(findings):
    kept = {figure.name: figure for figure in findings.figures if not figure.samples}
    assert kept["restart_seconds"].value == 2.0
    assert kept["report_seconds"].why
    assert "together with a slower one" in kept[f"tiers.{CPU}.write_gbps"].why
    assert kept["cores"].value is None
    assert not set(kept) & {figure.name for figure in findings.figures if figure.samples}


def test_the_first_requests_and_jobs_are_left_out_and_said_so(findings):
    notes = "\n".join(findings.notes)
    assert "4 first requests" in notes
    assert "first compress job with zstd" in notes


def test_the_error_that_is_left_is_small(known, findings, tmp_path):
    error = judged(known, findings.costs(), registry(), tmp_path / "virtual", progress=lambda line: None)
    assert error["failure"] is None
    assert error["decisions_equal"]
    assert error["requests_only_one"] == 0
    for each in error["requests"]:
        assert each["hit_rate_points"] == 0.0
        assert each["ttft"]["mape"] < 1.0
        assert abs(each["ttft"]["p99"]) < 2.0
    assert error["requests"][-1]["workload"] is None
    jobs = {each["workload"]: each["error"] for each in error["jobs"]}
    assert set(jobs) == {"compress", "decompress", "move"}
    assert all(abs(each) < 8.0 for each in jobs.values())
    assert all(abs(each["error"]) < 10.0 for each in error["workloads"])
    pairs = request_pairs(known, tmp_path / "virtual")
    assert len(pairs) == error["requests_matched"] == 144
    assert all(pair["cached_tokens"][0] == pair["cached_tokens"][1] for pair in pairs)


def test_the_file_of_costs_is_one_that_scenarios_take(known, findings, tmp_path):
    path = tmp_path / "costs.json"
    path.write_bytes(costs_document(findings, known))
    assert msgspec.json.decode(path.read_bytes())["about"]["scenario"] == "known"
    found = load_costs("costs.json", tmp_path)
    assert found == load_costs(findings.costs(), Path())
    # An entry of a method stands for all of it: what was not measured must be there as it was.
    assert found.codec("naive").encode_gbps == 1.5
    assert found.tier(CPU, CPU).write_gbps == 8.0


def test_a_method_that_was_loaded_in_chunks_of_one_size_keeps_what_a_chunk_takes(whole, as_wall, tmp_path):
    data, costs = whole
    data["workloads"][1]["instances"] = ["a"]
    findings = fit_costs([as_wall(data, costs, tmp_path / "wall")])
    (figure,) = [figure for figure in findings.figures if figure.name == "codecs.zstd.chunk_seconds"]
    assert (figure.value, figure.samples) == (0.0, 0)
    assert "several sizes" in figure.why


def test_several_runs_are_one_with_more_requests(known, findings, whole, as_wall, tmp_path):
    data, slower = whole
    slower["engines"]["synthetic/m"]["prefill_token"] *= 10
    odd = as_wall(data, slower, tmp_path / "odd")
    of_three = {figure.name: figure for figure in fit_costs([known, odd, known]).figures}
    of_one = {figure.name: figure for figure in findings.figures}
    assert of_three.keys() == of_one.keys()
    for name in ("engines.synthetic/m.prefill_token", "codecs.zstd.decode_gbps", f"tiers.{DISK}.read_gbps"):
        assert of_three[name].samples == 3 * of_one[name].samples
        # Whatever one of three runs was disturbed by, the two others agree.
        assert of_three[name].value == pytest.approx(of_one[name].value, rel=0.05)
    assert of_three["codecs.zstd.encode_gbps"].samples == 3 * of_one["codecs.zstd.encode_gbps"].samples


def test_runs_of_other_fleets_are_refused(known, as_wall, tmp_path):
    with pytest.raises(ConfigError, match="not runs of one fleet"):
        fit_costs([known, as_wall(machine(), COSTS_OF_ONE, tmp_path / "wall")])


def test_the_cores_of_the_machine_are_found(as_wall, tmp_path):
    data = machine()
    wall = as_wall(data, {**COSTS_OF_ONE, "cores": 1.4}, tmp_path / "wall")
    findings = calibrate([wall], registry())
    (cores,) = [figure for figure in findings.figures if figure.name == "cores"]
    assert cores.value == pytest.approx(1.4, rel=0.06)
    assert cores.samples > 20
    error = judged(wall, findings.costs(), registry(), tmp_path / "virtual", progress=lambda line: None)
    assert error["requests"][-1]["ttft"]["mape"] < 5.0


def test_with_cores_enough_none_are_found(as_wall, tmp_path):
    findings = calibrate([as_wall(machine(), COSTS_OF_ONE, tmp_path / "wall")], registry())
    (cores,) = [figure for figure in findings.figures if figure.name == "cores"]
    # Two instances and a client never want more than these.
    assert cores.value is None or cores.value >= 2.8


COSTS_OF_ONE = {
    "engines": {"synthetic/m": {"prefill_base": 0.005, "prefill_token": 1e-4, "decode_base": 0.003}},
    "request_seconds": 0.002,
}


def machine():
    """Two instances, first one by one and then both busy."""
    busy = {
        "name": "busy",
        "kind": "traffic",
        "contents": {"kind": "independent", "prompt_tokens": {"kind": "uniform", "at_least": 200, "at_most": 900}},
        "arrivals": {"kind": "closed", "concurrency": 1},
        "requests": 40,
    }
    busy["contents"]["output_tokens"] = 4
    return {
        "name": "machine",
        "seed": 4,
        "instance_defaults": {
            "engine": {"kind": "synthetic", "model": "m", "options": {"num_layers": 1, "head_dim": 8}},
            "chunk_size": 64,
        },
        "instances": [{"id": "a"}, {"id": "b"}],
        "workloads": [busy, {**busy, "name": "both", "arrivals": {"kind": "closed", "concurrency": 2}}],
    }


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_virtual_run_is_refused(as_wall, tmp_path):
    wall = as_wall(machine(), COSTS_OF_ONE, tmp_path / "wall", clock="virtual")
    with pytest.raises(ConfigError, match="virtual clock"):
        fit_costs([wall])


def test_a_run_without_requests_is_refused(as_wall, tmp_path):
    wall = as_wall(machine(), COSTS_OF_ONE, tmp_path / "wall")
    (wall / "events.jsonl").write_text('{"time": 0.0, "event": "fleet_ready"}\n')
    with pytest.raises(ConfigError, match="no requests to learn from"):
        fit_costs([wall])


def test_a_damaged_file_of_events_is_named_with_its_line(as_wall, tmp_path):
    wall = as_wall(machine(), COSTS_OF_ONE, tmp_path / "wall")
    text = (wall / "events.jsonl").read_text()
    (wall / "events.jsonl").write_text(text[: len(text) // 2])
    with pytest.raises(ConfigError, match=r"events.jsonl, line \d+"):
        fit_costs([wall])


def test_requests_that_do_not_say_what_they_took_are_left_out_and_counted(as_wall, tmp_path):
    wall = as_wall(machine(), COSTS_OF_ONE, tmp_path / "wall")
    lines = [msgspec.json.decode(line) for line in (wall / "events.jsonl").read_bytes().splitlines()]
    for line in lines:
        if line["event"] == "request" and line["position"] % 2:
            line["cache"] = {}
    (wall / "events.jsonl").write_bytes(b"\n".join(map(msgspec.json.encode, lines)))
    assert any("40 requests are left out" in note for note in fit_costs([wall]).notes)


def test_costs_that_a_scenario_has_stay_where_nothing_was_measured(as_wall, tmp_path):
    own = {"restart_seconds": 7.0, "engines": {"other": {"decode_base": 0.5}}, "tiers": {"Remote": {"read_gbps": 3}}}
    wall = as_wall(machine(), COSTS_OF_ONE, tmp_path / "wall", costs=own)
    found = load_costs(fit_costs([wall]).costs(), Path())
    assert found.restart_seconds == 7.0
    assert found.engine("other", "", None).decode_base == 0.5
    assert found.tier("Remote", "Remote").read_gbps == 3
    assert found.engine("synthetic", "m", None).prefill_token == pytest.approx(1e-4, rel=0.01)
