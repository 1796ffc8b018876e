"""Hypothesis profiles, and deep runs: the same tests again and again for a given time, with what they tried counted.

``ci`` is what an ordinary run uses; ``deep`` (``--hypothesis-profile deep``) is for ``make test-deep``.
"""

from __future__ import annotations

import json
import os
import platform
import time
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine
from hypothesis.statistics import collector

settings.register_profile("ci", deadline=None)
# Suites for plugins run once, whatever the time, since their fixtures are made for one run; they try more in it.
settings.register_profile("deep", parent=settings.get_profile("ci"), max_examples=200, print_blob=True)
settings.load_profile("ci")

MACHINE_SHARE = 6
"""A state machine gets as much time of a deep run as this many other property tests."""


class Steps:
    """Counts what state machines do: hypothesis checks their invariants at the begin and after every step."""

    def __init__(self) -> None:
        self.steps = 0

    def install(self) -> None:
        check = RuleBasedStateMachine.check_invariants

        def counted(machine: RuleBasedStateMachine, *args: Any) -> None:
            check(machine, *args)
            self.steps += hasattr(machine, "_begun")
            machine._begun = True  # type: ignore[attr-defined]

        RuleBasedStateMachine.check_invariants = counted  # type: ignore[method-assign]


class DeepRun:
    """Repeats property tests until their shares of the time are spent, and notes what they tried."""

    def __init__(self, seconds: float, counts: Path | None) -> None:
        self.seconds = seconds
        self.counts = counts
        self.began = time.monotonic()
        self.steps = Steps()
        self.steps.install()
        self.tests: dict[str, dict[str, Any]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        shares = {item: share(item) for item in items}
        workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        second = self.seconds * workers / max(1, sum(shares.values()))
        for item, parts in shares.items():
            item.runtest = partial(self.repeat, item, item.runtest, parts * second)  # type: ignore[method-assign]

    def repeat(self, item: pytest.Item, once: Any, budget: float) -> None:
        """Run a test at least once; with another seed each time, which is hypothesis's own manner."""
        cases, runs, began, outer, steps = 0, 0, time.monotonic(), collector.value, self.steps.steps

        def note(statistics: Any) -> None:
            nonlocal cases
            for name, phase in statistics.items():
                if name.endswith("-phase"):
                    cases += sum(case["status"] in ("valid", "interesting") for case in phase["test-cases"])
            if outer is not None:
                outer(statistics)

        try:
            with collector.with_value(note):
                while True:
                    once()
                    runs += 1
                    # What fails in a unittest class is kept there instead of raised.
                    failed = bool(getattr(item, "_excinfo", None))
                    if failed or not cases or time.monotonic() - began >= budget:
                        return
        finally:
            tried = {"cases": cases, "steps": self.steps.steps - steps, "runs": runs}
            item.user_properties += tried.items()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        tried = {name: value for name, value in report.user_properties if name in ("cases", "steps", "runs")}
        found = self.tests.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0})
        found.update(tried)
        found["seconds"] = round(found["seconds"] + report.duration, 3)
        if report.outcome != "passed":
            found["outcome"] = report.outcome
        if report.failed:
            found["failure"] = str(report.longrepr)[-2000:]

    def pytest_sessionfinish(self) -> None:
        if self.counts is None or "PYTEST_XDIST_WORKER" in os.environ:
            return
        tests = [{"test": name, **found} for name, found in sorted(self.tests.items()) if found.get("cases")]
        document = {
            "minutes": round((time.monotonic() - self.began) / 60, 1),
            "versions": {"python": platform.python_version(), "hypothesis": hypothesis.__version__},
            "totals": {
                "tests": len(tests),
                "other_tests": len(self.tests) - len(tests),
                "cases": sum(test["cases"] for test in tests),
                "steps": sum(test["steps"] for test in tests),
                "failures": sum(found["outcome"] == "failed" for found in self.tests.values()),
            },
            "tests": tests,
        }
        self.counts.parent.mkdir(parents=True, exist_ok=True)
        self.counts.write_text(json.dumps(document, indent=1) + "\n")


def share(item: pytest.Item) -> int:
    """Parts of a deep run's time."""
    if isinstance(getattr(getattr(item, "cls", None), "settings", None), settings):
        return MACHINE_SHARE
    return int(hypothesis.is_hypothesis_test(getattr(item, "obj", None)))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("deep run")
    group.addoption("--deep-minutes", type=float, help="repeat property tests for about so many minutes in all")
    group.addoption("--deep-counts", type=Path, help="write what the property tests tried to this JSON file")


def pytest_configure(config: pytest.Config) -> None:
    minutes, counts = config.getoption("--deep-minutes"), config.getoption("--deep-counts")
    if minutes is not None or counts is not None:
        config.pluginmanager.register(DeepRun(60 * (minutes or 0), counts), "deep-run")
