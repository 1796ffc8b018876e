"""A module given with ``-p`` offers one plugin of every kind; one scenario and one trace use all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmcache_kit.cli import main
from lmcache_kit.contracts import PLUGIN_KINDS
from lmcache_kit.plugins import registry

HERE = Path(__file__).parent
OWN = {
    "storage": "shelf",
    "compression": "squeeze",
    "transport": "carrier",
    "engine": "parrot",
    "eviction": "alphabetical",
    "placement": "bottom_up",
    "workload": "tour",
    "trace": "lengths",
    "launcher": "butler",
    "reporter": "names",
}

SCENARIO: dict[str, Any] = {
    "name": "ten",
    "launcher": {"kind": "butler"},
    "reporters": ["names"],
    "instance_defaults": {
        "engine": "parrot",
        "chunk_size": 16,
        "placement": "bottom_up",
        "transport": "carrier",
        "tiers": [
            {"kind": "memory", "capacity": "10KiB", "eviction": "alphabetical"},
            {"kind": "shelf", "options": {"label": "top"}},
        ],
    },
    "instances": [{"id": "a"}, {"id": "b"}],
    "links": [{"between": ["a", "b"], "latency": "1ms"}],
    "workloads": [{"name": "first", "kind": "tour"}, {"name": "second", "kind": "tour", "after": "first"}],
    "expect": {"first.texts": 1, "first.compress": "done", "first.move": "done", "second.texts": 1},
}


@pytest.fixture
def lmcache_kit(tmp_path: Path) -> Any:
    marks = tmp_path / "marks"
    marks.mkdir()

    def run(*arguments: str) -> tuple[str, set[str]]:
        """The command's stdout, and all marks so far."""
        done = subprocess.run(
            [sys.executable, "-m", "lmcache_kit", "-p", "ten_plugins", *arguments],
            capture_output=True,
            text=True,
            timeout=110,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(HERE), "TEN_PLUGINS_MARKS": str(marks)},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, {path.name for path in marks.iterdir()}

    return run


def test_a_scenario_uses_them(lmcache_kit: Any, tmp_path: Path) -> None:
    (tmp_path / "ten.yaml").write_text(yaml.safe_dump(SCENARIO))
    stdout, marks = lmcache_kit("run", "ten.yaml", "--format", "json", "--output-dir", "out")
    report = json.loads(stdout)
    first, second = report["results"]
    assert first["locations"] == ["LocalCPUBackend", "ShelfBackend"]
    assert first["far_cached"] == first["tokens"] - 1, "the other instance serves what was moved to it"
    assert first["far_codecs"] == {"squeeze": 2}
    assert first["rng"] != second["rng"]
    assert marks == {
        "storage.made.ShelfBackend.top",
        "storage.put",
        "compression.encode",
        "compression.decode",
        "transport.listen",
        "transport.connect",
        "engine.made.polly",
        "engine.cold",
        "engine.warm",
        "eviction.made.10240",
        "eviction.touch",
        "eviction.evicted",
        "placement.on_store",
        "placement.on_idle",
        "placement.on_hit",
        "placement.on_evict",
        "launcher.the-controller",
        "launcher.instance-a",
        "launcher.instance-b",
        "launcher.closed",
    }
    assert (tmp_path / "out" / "names.txt").read_text() == "first\nsecond\n"
    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    assert {"by": "a plugin", "workload": "first"}.items() <= next(
        event for event in events if event["event"] == "tour_done"
    ).items()
    listed = {(entry["kind"], entry["name"]) for entry in report["plugins"]}
    assert listed >= {(kind, name) for kind, name in OWN.items() if kind != "trace"}


def test_a_trace_is_read_by_its_reader(lmcache_kit: Any, tmp_path: Path) -> None:
    (tmp_path / "trace.txt").write_text("0 10 5\n2.5 20 5\n")
    stdout, marks = lmcache_kit("trace", "info", "trace.txt", "--reader", "lengths", "--format", "json")
    assert json.loads(stdout)["requests"] == 2
    assert marks == {"trace.read"}


def test_they_are_listed_and_pass_the_checks_of_their_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEN_PLUGINS_MARKS", str(tmp_path))
    monkeypatch.setenv("LMCACHE_KIT_PLUGIN_MODULES", "ten_plugins")
    monkeypatch.syspath_prepend(HERE)
    registry.cache_clear()
    try:
        assert set(OWN) == set(PLUGIN_KINDS)
        assert main(["plugins", "list", "--format", "json"]) == 0
        listed = {(entry["kind"], entry["name"]): entry for entry in json.loads(capsys.readouterr().out)["plugins"]}
        for kind, name in OWN.items():
            assert listed[kind, name]["source"] == "ten_plugins"
            assert main(["plugins", "show", name]) == 0
            assert main(["plugins", "check", name]) == 0, capsys.readouterr().out
    finally:
        registry.cache_clear()
