"""Workloads of others may do anything; the fleet must be torn down and the user told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmcache_kit.cli import main

PLUGIN = """
from lmcache_kit.contracts import Workload, WorkloadPlugin, WorkloadResult
from lmcache_kit.hookspecs import hookimpl


class Broken(Workload):
    async def run(self, context):
        raise ZeroDivisionError("by design")


class Odd(Workload):
    async def run(self, context):
        return WorkloadResult(name=context.name, kind="odd", values={"answer": 42})


@hookimpl
def lmcache_kit_workloads():
    yield WorkloadPlugin(name="broken_one", summary="raises", factory=lambda options: Broken())
    yield WorkloadPlugin(name="odd_one", summary="has none of the usual values", factory=lambda options: Odd())
"""


@pytest.fixture
def scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from lmcache_kit.plugins import registry

    (tmp_path / "odd_workloads.py").write_text(PLUGIN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LMCACHE_KIT_PLUGIN_MODULES", "odd_workloads")
    registry.cache_clear()
    path = tmp_path / "odd.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": "odd",
                "instances": [{"id": "a", "engine": "synthetic"}],
                "workloads": [{"name": "first", "kind": "odd_one"}, {"name": "second", "kind": "broken_one"}],
                "expect": {"first.answer": 42},
            }
        )
    )
    yield path
    registry.cache_clear()


def test_a_bug_in_a_workload_is_reported_with_the_results_before_it(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(scenario), "--output-dir", str(tmp_path / "out"), "--format", "json"]) == 1
    shown = capsys.readouterr()
    assert "error: workload second: ZeroDivisionError: by design" in shown.err
    report: dict[str, Any] = json.loads(shown.out)
    assert (report["status"], report["error"]) == ("failed", "workload second: ZeroDivisionError: by design")
    assert report["results"] == [{"name": "first", "kind": "odd", "answer": 42}]
    assert "first" in (tmp_path / "out" / "report.html").read_text(), "a result without the usual values is shown too"
