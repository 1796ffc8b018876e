"""What a run with real peers exercised, as a table at its end."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmcache_kit.text_table import text_table

HERE = Path(__file__).parent
PEERS = {"lmcache_env": "lmcache", "vllm_env": "vllm"}


class Table:
    """Collects what tests say that they exercise, and how they ended."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if HERE not in item.path.parents:
                continue
            whats = [mark.args[0] for mark in item.iter_markers("exercises")] or [item.name]
            peers = [name for fixture, name in PEERS.items() if fixture in getattr(item, "fixturenames", ())]
            self.rows[item.nodeid] = {"whats": whats, "peers": peers, "seconds": 0.0, "outcome": "not run"}

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        for item in items:
            self.rows.pop(item.nodeid, None)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        row = self.rows.get(report.nodeid)
        if row is None:
            return
        row["seconds"] += report.duration
        if report.when == "call" or report.outcome != "passed":
            row["outcome"] = report.outcome

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        lines = [[what, peers, outcome, f"{seconds:.1f}"] for what, peers, outcome, seconds in self.lines()]
        if lines:
            terminalreporter.section("exercised with real peers")
            terminalreporter.write_line(", ".join(f"{name} {version}" for name, version in own_versions().items()))
            terminalreporter.write_line("")
            terminalreporter.write_line(text_table(["what", "with", "ended", "seconds"], lines))

    def lines(self) -> Iterator[tuple[str, str, str, float]]:
        """One for each test that ran or should have, under each thing that it exercises."""
        shown: dict[str, str] = {}
        for row in self.rows.values():
            for peer in row["peers"]:
                if peer not in shown and row["outcome"] != "not run":
                    shown[peer] = sys.modules["interop_environments"].environment(peer).shown()
            with_ = ", ".join(shown.get(peer, peer) for peer in row["peers"])
            for what in row["whats"]:
                yield what, with_, row["outcome"], row["seconds"]


def own_versions() -> dict[str, str]:
    return {"lmcache-kit": importlib.metadata.version("lmcache-kit"), "Python": platform.python_version()}
