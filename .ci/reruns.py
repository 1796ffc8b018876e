"""A pytest plugin that shows why tests had to be run again; ``--reruns`` itself tells their names alone."""

from __future__ import annotations

import pytest


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = terminalreporter.getreports("rerun")
    if not reports:
        return
    terminalreporter.write_sep("=", "failed once, and were run again", yellow=True)
    for report in reports:
        terminalreporter.write_sep("_", report.nodeid)
        report.toterminal(terminalreporter._tw)
