from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import Any

import pytest

from lmcache_kit.contracts.workload import WorkloadResult
from lmcache_kit.errors import ConfigError
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.report import build_report, read_report, write_machine_facts
from lmcache_kit.report.build import host_facts, plugin_facts


def test_results_carry_name_kind_and_values() -> None:
    report = build_report(
        scenario="x",
        summary="",
        clock="wall",
        seed=1,
        status="passed",
        error=None,
        started=0.0,
        seconds=1.0,
        boot_seconds=None,
        results=[WorkloadResult(name="serve", kind="completions", values={"tokens": 3, "source": ("a", "b")})],
        expectations=[],
        plugins=[],
    )
    assert report["schema_version"] == 1
    assert report["results"] == [{"name": "serve", "kind": "completions", "tokens": 3, "source": ["a", "b"]}]
    assert {"versions", "plugins", "host", "clock", "seed", "scenario"} <= set(report)
    json.dumps(report)


def test_the_host_is_described_and_not_named() -> None:
    facts = host_facts()
    assert facts["cpus"] >= 1
    assert facts["memory_bytes"] > 0
    assert platform.node() not in json.dumps(facts) or not platform.node()


def test_plugins_name_their_distribution() -> None:
    (fact,) = plugin_facts([("engine", "synthetic")], PluginRegistry(allow=[]))
    assert (fact["kind"], fact["name"], fact["distribution"]) == ("engine", "synthetic", "lmcache-kit")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "is not a report"),
        ("[]", "has no schema_version"),
        ('{"schema_version": 1}', "has no results, scenario"),
        ('{"schema_version": 99, "scenario": "x", "results": []}', "has report schema 99"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_report(path)


def test_a_report_is_read_back(tmp_path: Path, report: dict[str, Any]) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    assert read_report(path) == report


def virtual_report() -> dict[str, Any]:
    return build_report(
        scenario="x",
        summary="",
        clock="virtual",
        seed=1,
        status="passed",
        error=None,
        started=time.time(),
        seconds=3600.0,
        boot_seconds=0.0,
        results=[],
        expectations=[],
        plugins=[],
    )


def test_the_report_of_a_virtual_run_is_the_same_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    here = virtual_report()
    monkeypatch.setattr(platform, "python_version", lambda: "9.9.9")
    monkeypatch.setattr(platform, "machine", lambda: "abacus")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert json.dumps(virtual_report()) == json.dumps(here)
    assert not {"host", "versions", "started_unix"} & set(here)
    assert here["seconds"] == 3600.0


def test_what_it_leaves_out_is_in_a_file_of_its_own(tmp_path: Path) -> None:
    write_machine_facts(tmp_path, started=5.0, seconds=0.5)
    facts = json.loads((tmp_path / "machine.json").read_text())
    assert (facts["started_unix"], facts["seconds"]) == (5.0, 0.5)
    assert facts["versions"]["python"] == platform.python_version()
    assert facts["host"] == host_facts()
