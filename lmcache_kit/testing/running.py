"""A suite run in this process, for ``plugins check``: pytest without a trace of itself.

Nothing is written outside a temporary folder, other pytest plugins and the settings of the folder at hand stay out,
and what the plugin under test prints is swallowed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from hypothesis import configuration

from lmcache_kit.contracts.records import Plugin
from lmcache_kit.errors import LMCacheKitError
from lmcache_kit.testing import pytest_plugin
from lmcache_kit.testing.effort import EXAMPLES
from lmcache_kit.testing.results import CheckResult
from lmcache_kit.testing.suites.base import PluginTests

__all__ = ["current_suite", "run_suite"]

_MODULE = """from lmcache_kit.testing.running import current_suite

TestPlugin = current_suite()
"""
_SETTINGS = "[pytest]\naddopts = --strict-markers\nfilterwarnings = default\n"
_LONGEST_DETAIL = 400
_current: ContextVar[type[PluginTests]] = ContextVar("_current")


def current_suite() -> type[PluginTests]:
    """The test class of the run at hand; what pytest collects asks for it."""
    return _current.get()


def run_suite(
    suite: type[PluginTests],
    plugin: Plugin | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    examples: int = 100,
    only: Sequence[str] = (),
) -> list[CheckResult]:
    """Run a suite against one plugin, and say how each of its tests ended, in their order.

    Args:
        suite: the suite, or a test class made of it.
        plugin: what to test; None where ``suite`` has its own fixture.
        options: options of the plugin as plain values.
        examples: how much is tried; 100 is what hypothesis's default profile tries.
        only: names of tests; all when empty.

    Nothing that the plugin does raises from here. Raises LMCacheKitError when pytest itself could not run.
    """
    members: dict[str, Any] = {}
    if plugin is not None:
        members["plugin"] = pytest.fixture(lambda self: plugin)
    if options is not None:
        members["options"] = pytest.fixture(lambda self: options)
    outcomes = _Outcomes(only)
    with tempfile.TemporaryDirectory(prefix="lmcache-kit-check-") as name:
        folder = Path(name)
        (folder / "test_plugin.py").write_text(_MODULE)
        (folder / "pytest.ini").write_text(_SETTINGS)
        current = _current.set(type("TestPlugin", (suite,), members))
        effort = EXAMPLES.set(examples)
        try:
            with _alone(folder):
                code = pytest.main(
                    [
                        str(folder / "test_plugin.py"),
                        *("--config-file", str(folder / "pytest.ini"), "--rootdir", str(folder)),
                        *("--basetemp", str(folder / "tmp"), "--import-mode", "importlib"),
                        *("-p", "no:cacheprovider", "-p", "no:terminal", "-p", "no:faulthandler"),
                    ],
                    plugins=[pytest_plugin, outcomes],
                )
        finally:
            EXAMPLES.reset(effort)
            _current.reset(current)
    if outcomes.broken or code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise LMCacheKitError(f"the suite could not be run: {outcomes.broken or code!r}")
    return outcomes.results()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No pytest plugins or options of the environment, and hypothesis's own files in ``folder``."""
    before = dict(os.environ)
    for name in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS"):
        os.environ.pop(name, None)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    configuration.set_hypothesis_home_dir(folder / "hypothesis")
    try:
        yield
    finally:
        configuration.set_hypothesis_home_dir(None)
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


class _Outcomes:
    """Collects what happened, as a pytest plugin of its own."""

    def __init__(self, only: Sequence[str]) -> None:
        self._only = set(only)
        self._found: dict[str, CheckResult] = {}
        self.broken = ""

    @pytest.hookimpl
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self._only:
            items[:] = [item for item in items if item.name.partition("[")[0] in self._only]

    @pytest.hookimpl
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.broken = _one_line(str(report.longrepr))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        self._note(item, call, report)
        return report

    def _note(self, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
        known = self._found.get(item.name)
        if report.failed and call.excinfo is not None and (known is None or known.outcome != "failed"):
            self._found[item.name] = CheckResult(item.name, "failed", describe(call.excinfo.value))
        elif report.skipped and call.excinfo is not None:
            self._found[item.name] = CheckResult(item.name, "skipped", _one_line(str(call.excinfo.value)))
        elif report.when == "call" and known is None:
            detail = next((str(value) for key, value in report.user_properties if key == "detail"), "")
            self._found[item.name] = CheckResult(item.name, "passed", detail)

    def results(self) -> list[CheckResult]:
        return list(self._found.values())


def describe(error: BaseException) -> str:
    """An error in one line: its kind unless it is an assertion, its text, and the example that hypothesis found."""
    if isinstance(error, BaseExceptionGroup) and error.exceptions:
        return describe(error.exceptions[0])
    text = error.detail if isinstance(error, LMCacheKitError) else str(error)
    # Pytest puts the message first and the explanation of the assertion behind it, on lines of their own.
    said, _, explained = text.partition("\nassert ")
    line = _one_line(said or explained or "an assertion without a message")
    if not isinstance(error, (AssertionError, pytest.fail.Exception)):
        line = f"{type(error).__name__}: {line}"
    notes = [
        _one_line(note) for note in getattr(error, "__notes__", ()) if "alsifying" in note or note.startswith("Draw")
    ]
    return "; ".join([line, *notes])


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_DETAIL else text[: _LONGEST_DETAIL - 3] + "..."
