"""A virtual run that fails says why and still leaves its report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from lmcache_kit.contracts.records import Options, WorkloadPlugin
from lmcache_kit.contracts.workload import Workload
from lmcache_kit.errors import LMCacheKitError, NotFoundError
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.scenario.loader import scenario_from_data
from lmcache_kit.sim.runner import VirtualRun


class Failing(Workload):
    def __init__(self, error: Exception) -> None:
        self.error = error

    async def run(self, context: Any) -> Any:
        context.emit("about_to_fail", reason=str(self.error))
        context.progress("about to fail")
        raise self.error


def a_run(folder: Path, error: Exception, said: list[str], **changes: Any) -> VirtualRun:
    registry = PluginRegistry(allow=[])
    usual = registry.get(WorkloadPlugin, "traffic")
    data = {
        "name": "failed",
        "clock": "virtual",
        "instance_defaults": {"engine": {"kind": "synthetic", "options": {"num_layers": 1, "head_dim": 8}}},
        "instances": [{"id": "a"}],
        "workloads": [{"name": "work", "kind": "traffic"}],
        "reporters": [],
        **changes,
    }
    record = replace(usual, factory=lambda options: Failing(error), options=Options)
    get = registry.get
    with patch.object(registry, "get", lambda kind, name: record if name == "traffic" else get(kind, name)):
        return VirtualRun(scenario_from_data(data), registry, folder, progress=said.append)


@pytest.mark.parametrize("events", [True, False])
def test_what_a_workload_refuses_with_names_it(tmp_path: Path, events: bool) -> None:
    said: list[str] = []
    run = a_run(tmp_path / "out", NotFoundError("no such thing", hint="look again"), said, events=events)
    with pytest.raises(NotFoundError, match="workload work: no such thing") as caught:
        run.run()
    assert caught.value.hint == "look again"
    assert said == ["work: about to fail"]
    assert run.report is not None
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["status"] == run.report["status"] == "failed"
    assert "no such thing" in written["error"]
    assert (tmp_path / "out" / "events.jsonl").exists() == events
    if events:
        assert "about_to_fail" in (tmp_path / "out" / "events.jsonl").read_text()


def test_whatever_else_a_workload_raises_is_told_with_its_type(tmp_path: Path) -> None:
    with pytest.raises(LMCacheKitError, match="workload work: ZeroDivisionError: by nothing"):
        a_run(tmp_path / "out", ZeroDivisionError("by nothing"), []).run()


def test_faults_that_the_run_did_not_come_to_are_told(tmp_path: Path) -> None:
    said: list[str] = []
    late = {"at": "1h", "kill": "a"}
    run = a_run(tmp_path / "out", NotFoundError("gone"), said, faults=[late])
    with pytest.raises(NotFoundError):
        run.run()
    assert any("the run ended before its kill of a" in line for line in said), said
