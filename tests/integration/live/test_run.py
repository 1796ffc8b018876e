from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmcache_kit.cli import main
from lmcache_kit.scenario import dump_scenario, load_scenario

SIX = ["serve", "lookup", "compress", "read_back", "decompress", "move"]


def test_every_step_on_real_processes(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    command = run("synthetic", "--format", "json")
    status, stdout, stderr = command.finish()
    assert status == 0, stderr
    report = json.loads(stdout)
    assert report == json.loads((command.output / "report.json").read_text())
    assert (report["schema_version"], report["scenario"], report["clock"], report["seed"]) == (
        1,
        "synthetic",
        "wall",
        7,
    )
    assert (report["status"], report["error"]) == ("passed", None)
    assert [result["name"] for result in report["results"]] == SIX
    for result in report["results"]:
        assert sum(result["counts"].values()) > 0
        assert result["tokens"] > 0
        assert result["bytes_before"] > 0
        assert result["bytes_after"] > 0
        assert result["ratio"] == result["bytes_before"] / result["bytes_after"]
        assert result["seconds"] > 0
        assert 0 < result["latency_seconds"]["p50"] <= result["latency_seconds"]["p99"]
    by_name = {result["name"]: result for result in report["results"]}
    assert by_name["read_back"]["text_equal"] is True
    assert by_name["read_back"]["chunks_read_by_codec"].keys() == {"zstd"}, "it really read compressed chunks"
    assert by_name["compress"]["ratio"] > 1
    assert by_name["decompress"]["bytes_after"] == by_name["compress"]["bytes_before"], "lossless, to the byte"
    assert by_name["move"]["verified"] is True
    assert all(outcome["met"] for outcome in report["expectations"])

    events = [json.loads(line) for line in (command.output / "events.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "request" for event in events) == 12
    rewrites = [event for event in events if event["event"] == "cache_rewrite" and event["workload"] == "compress"]
    assert {event["cause"] for event in rewrites} == {"zstd"}
    assert {event["instance"] for event in rewrites} == {"a", "b"}
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)
    for line in ("starting a controller and 2 instances", "serve: 6 completions on 2 ", "move: move 1 prefix from a "):
        assert f"] {line}" in stderr
    page = (command.output / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert {log.name for log in (command.output / "logs").iterdir()} == {"controller.log", "a.log", "b.log"}
    assert not (command.output / "data").exists()
    # What was run can be run again, from any folder.
    resolved = load_scenario(command.output / "scenario.yaml")
    assert dump_scenario(resolved) == (command.output / "scenario.yaml").read_text()
    command.wait_for_no_fleet()

    (command.output / "report.html").unlink()
    capsys.readouterr()
    assert main(["report", str(command.output), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == report
    assert (command.output / "report.html").read_text() == page


def test_a_missed_expectation_sets_the_status_and_is_named(run: Any) -> None:
    command = run(
        "synthetic", "--set", "expect.compress.ratio=> 1000", "--set", "expect.serve.nonsense=1", "--seed", "8"
    )
    status, stdout, stderr = command.finish()
    assert status == 1
    assert "MISSED" in stdout
    assert "missed: compress.ratio: wanted '> 1000', got 1." in stderr
    assert "missed: serve.nonsense: wanted 1, serve has no 'nonsense'" in stderr
    report = json.loads((command.output / "report.json").read_text())
    assert (report["status"], report["seed"]) == ("missed", 8)


@pytest.mark.parametrize("victim", ["a.yaml", "controller"])
def test_a_child_that_dies_ends_the_run_by_name(run: Any, slow: Path, victim: str) -> None:
    command = run(str(slow), "--format", "json")
    fleet = command.wait_for_work()
    assert len(fleet) == 3
    (pid,) = [pid for pid, argv in fleet.items() if any(word.endswith(victim) for word in argv)]
    os.kill(pid, signal.SIGKILL)
    status, stdout, stderr = command.finish()
    assert status == 1
    name = "the controller" if victim == "controller" else "instance a"
    assert f"error: {name} was ended by SIGKILL during workload serve" in stderr
    assert f"hint: whole log: {command.output}" in stderr
    assert "Traceback" not in stderr
    assert json.loads(stdout) == json.loads((command.output / "report.json").read_text())
    assert json.loads(stdout)["status"] == "failed"
    assert command.fleet() == {}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_tears_the_fleet_down(run: Any, slow: Path, number: signal.Signals, status: int) -> None:
    command = run(str(slow))
    assert len(command.wait_for_work()) == 3
    command.process.send_signal(number)
    # Impatient users press Ctrl-C again; that must not leave processes behind.
    command.process.send_signal(number)
    found, stdout, stderr = command.finish()
    assert (found, stdout) == (status, ""), stderr
    assert "Traceback" not in stderr
    assert command.fleet() == {}
    assert json.loads((command.output / "report.json").read_text())["error"] == "interrupted"


def test_a_runner_that_is_killed_leaves_no_process(run: Any, slow: Path) -> None:
    command = run(str(slow))
    assert len(command.wait_for_work()) == 3
    command.process.kill()
    command.process.communicate()
    command.wait_for_no_fleet()


def test_a_port_in_use_names_the_setting(run: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, _, stderr = run("synthetic", "--set", f"instances.b.port={port}").finish()
    assert status == 1
    assert f"error: port {port} on 127.0.0.1 is in use" in stderr
    assert "hint: change instances.b.port, or choose a free port with --set instances.b.port=0" in stderr


def test_an_instance_that_cannot_start_shows_its_log(run: Any) -> None:
    command = run("synthetic", "--set", "instances.b.config.no_such_key=1")
    status, _, stderr = command.finish()
    assert status == 1
    assert "instance b ended with status 2 during start-up" in stderr
    assert "no_such_key" in stderr
    assert command.fleet() == {}


def test_start_up_has_a_deadline(run: Any) -> None:
    command = run("synthetic", "--set", "startup_timeout=0.01")
    status, _, stderr = command.finish()
    assert status == 1
    assert "is not ready within startup_timeout (0.01 s)" in stderr
    assert command.fleet() == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quickstart", "--clock", "virtual"], "what its steps cost"),
        (["synthetic", "--set", "nonsense=1"], "unknown key 'nonsense'"),
        (["synthetic", "--set", "workloads.compress.method=zsdt"], "unknown compression 'zsdt'"),
        (["no_such_scenario"], "there is no scenario"),
        (["synthetic", "--seed", "-1"], "seed"),
        (["synthetic", "--clock", "sundial"], "sundial"),
    ],
)
def test_usage_errors_exit_with_2_and_boot_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *arguments, "--output-dir", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert not (tmp_path / "out").exists()


def test_links_are_shaped_and_evicted_chunks_are_demoted(run: Any) -> None:
    command = run("tiers", "--format", "json")
    status, stdout, stderr = command.finish()
    assert status == 0, stderr
    by_name = {result["name"]: result for result in json.loads(stdout)["results"]}
    # 100 Mbps carry 12.5 MB in a second, whatever the machine.
    assert by_name["move"]["latency_seconds"]["p50"] >= by_name["move"]["bytes_before"] / 12.5e6
    assert by_name["read_back"]["cached_tokens_by_location"]["LocalDiskBackend"] > 0
    assert by_name["read_far"]["cached_tokens"] > 0


def test_pins_hold_and_clear_spares_them(run: Any, tmp_path: Path) -> None:
    scenario = {
        "name": "pins",
        "instances": [{"id": "a", "engine": "synthetic", "chunk_size": 16}],
        "workloads": [
            {"name": "kept", "kind": "completions", "prompts": ["this prompt is pinned in memory, all of it"]},
            {"name": "loose", "kind": "completions", "prompts": ["another prompt that nobody holds on to"]},
            {"name": "pin", "kind": "pin", "of": "kept", "owner": "test"},
            {"name": "clear", "kind": "clear"},
            {"name": "after", "kind": "lookup", "of": "kept"},
            {"name": "gone", "kind": "lookup", "of": "loose", "settle_seconds": 0.2},
            {"name": "unpin", "kind": "unpin", "of": "kept", "owner": "test"},
            {"name": "clear_all", "kind": "clear"},
        ],
        "expect": {
            "pin.tokens": "== kept.tokens",
            "clear.tokens": "== loose.tokens",
            "after.all_found": True,
            "gone.hit_tokens": 0,
            "unpin.tokens": "== kept.tokens",
            "clear_all.bytes_after": 0,
        },
    }
    path = tmp_path / "pins.yaml"
    path.write_text(yaml.safe_dump(scenario))
    status, stdout, stderr = run(str(path)).finish()
    assert status == 0, stdout + stderr
