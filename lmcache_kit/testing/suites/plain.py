"""Kinds that need a fleet to do anything: what can be said of them without one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from lmcache_kit.contracts.launcher import Launcher
from lmcache_kit.contracts.records import LauncherPlugin, ReporterPlugin, WorkloadPlugin
from lmcache_kit.contracts.reporter import Reporter
from lmcache_kit.contracts.workload import Workload, WorkloadResult
from lmcache_kit.report.build import build_report
from lmcache_kit.testing.suites.base import PluginTests

__all__ = ["LauncherTests", "ReporterTests", "WorkloadTests"]


class WorkloadTests(PluginTests):
    """A workload can be made and says what it needs. What it does is tested by a scenario."""

    record_type = WorkloadPlugin
    contract = Workload

    def test_it_names_the_clocks_that_it_runs_under(self, record: WorkloadPlugin) -> None:
        assert record.clocks, "no clock at all"
        assert record.clocks <= {"wall", "virtual"}, (
            f"there are no clocks but wall and virtual: {sorted(record.clocks)}"
        )

    def test_it_names_what_it_needs(self, subject: Workload, record_property: Callable[[str, object], None]) -> None:
        needs = list(subject.needs())
        assert all(isinstance(each, str) for each in needs)
        assert list(subject.needs()) == needs, "it needs something else the second time"
        record_property("detail", ", ".join(needs) or "nothing")


class LauncherTests(PluginTests):
    """A launcher can be made. What it launches is tested by a scenario."""

    record_type = LauncherPlugin
    contract = Launcher
    capabilities = frozenset({"faults"})


class ReporterTests(PluginTests):
    """A reporter renders a finished run."""

    record_type = ReporterPlugin
    contract = Reporter

    def test_it_renders_a_report(self, subject: Reporter, record_property: Callable[[str, object], None]) -> None:
        report = finished_run()
        before = json.dumps(report)
        text = subject.render(report)
        assert isinstance(text, str)
        assert text, "render answers nothing"
        assert json.dumps(report) == before, "render changed the report"
        assert subject.render(report) == text, "the same report renders differently the second time"
        record_property(
            "detail", f"{len(text)} characters" + (f", for {subject.file_name}" if subject.file_name else "")
        )


def finished_run() -> dict[str, Any]:
    """The report of a small run, as the runner makes it."""
    values = {
        "counts": {"requests": 2},
        "tokens": 512,
        "bytes_before": 1 << 20,
        "bytes_after": 1 << 19,
        "ratio": 2.0,
        "seconds": 0.25,
        "latency_seconds": {"p50": 0.1, "p90": 0.12, "p99": 0.13},
        "text_equal": True,
    }
    return build_report(
        scenario="check",
        summary="a sample <run>",
        clock="wall",
        seed=0,
        status="missed",
        error=None,
        started=0.0,
        seconds=1.5,
        boot_seconds=0.5,
        results=[WorkloadResult(name="compress", kind="compress", values=values)],
        expectations=[{"path": "compress.ratio", "wanted": ">= 3", "got": 2.0, "met": False, "problem": None}],
        plugins=[],
    )
