"""Kinds that need a fleet or files to do anything: they can be made, and reporters render."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from lmcache_kit.contracts.launcher import Launcher
from lmcache_kit.contracts.records import Options, Plugin
from lmcache_kit.contracts.reporter import Reporter
from lmcache_kit.contracts.trace import TraceReader
from lmcache_kit.contracts.workload import Workload, WorkloadResult
from lmcache_kit.errors import InvalidRequestError, LMCacheKitError
from lmcache_kit.report.build import build_report
from lmcache_kit.testing.checks.result import CheckResult, Skipped, require, run_check

__all__ = ["run"]

_CONTRACTS: dict[str, type] = {"workload": Workload, "trace": TraceReader, "launcher": Launcher, "reporter": Reporter}


def _report() -> dict[str, Any]:
    """A small finished run, as the runner would report it."""
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


def run(record: Plugin, options: Options) -> list[CheckResult]:
    made: list[Any] = []

    def make() -> str:
        try:
            made.append(record.factory(options))  # type: ignore[attr-defined]
        except LMCacheKitError as error:
            raise Skipped(f"it cannot be made here: {error.detail}") from None
        want = _CONTRACTS[record.kind]
        require(isinstance(made[0], want), f"the factory made a {type(made[0]).__name__}, not a {want.__name__}")
        return type(made[0]).__name__

    results = [run_check("made", make)]
    if results[0].outcome == "passed" and record.kind == "reporter":
        results.append(run_check("renders a report", lambda: _renders(made[0])))
    if results[0].outcome == "passed" and record.kind == "trace":
        results.append(run_check("refuses what it cannot read", lambda: _refuses(made[0])))
    if results[0].outcome == "passed" and record.kind == "workload":
        results.append(run_check("names what it needs", lambda: ", ".join(made[0].needs()) or "nothing"))
    return results


def _renders(reporter: Reporter) -> str:
    report = _report()
    before = json.dumps(report)
    text = reporter.render(report)
    require(isinstance(text, str) and bool(text), "render did not answer a text")
    require(reporter.render(report) == text, "the same report renders differently the second time")
    require(json.dumps(report) == before, "render changed the report")
    return f"{len(text)} characters" + (f", for {reporter.file_name}" if reporter.file_name else "")


def _refuses(reader: TraceReader) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "not-a-trace"
        path.write_bytes(b"\x00 not, a {trace\n")
        try:
            list(reader.read(path))
        except InvalidRequestError as error:
            require(path.name in error.message, f"the refusal does not name the file: {error.message}")
            return ""
    raise AssertionError("a file of another format is read as if it were a trace")
