"""A suite run in this process, for ``plugins check``: pytest without a trace of itself.

Nothing is written outside a temporary folder, other pytest plugins and the settings of the folder at hand stay out,
and what the plugin under test prints is swallowed.
"""

from __future__ import annotations

import importlib
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import configuration

from lmcache_kit.errors import LMCacheKitError
from lmcache_kit.testing import pytest_plugin
from lmcache_kit.testing.effort import EXAMPLES, SHRINKS
from lmcache_kit.testing.results import CheckResult

if TYPE_CHECKING:
    from lmcache_kit.testing.suites.base import PluginTests

__all__ = ["NOT_TRIED", "SuiteRun", "current_suite", "describe", "run_suite"]

_MODULE = """from lmcache_kit.testing.running import current_suite

TestPlugin = current_suite()
"""
_SETTINGS = "[pytest]\naddopts = --strict-markers\nfilterwarnings = default\n"
_LONGEST_DETAIL = 400
# The test without which no other says anything; it comes before those of the kind.
_FIRST = "test_the_factory_makes_what_its_kind_promises"
NOT_TRIED = "not tried: the factory does not make what its kind promises"


class SuiteRun(msgspec.Struct, frozen=True):
    """How a suite ended.

    Args:
        results: one per test.
        abilities: names of the optional protocols that the plugin has and the suite tested.
    """

    results: list[CheckResult]
    abilities: list[str]


_current: ContextVar[Callable[[], type[PluginTests]]] = ContextVar("_current")


def current_suite() -> type[PluginTests]:
    """The test class of the run at hand; what pytest collects asks for it."""
    return _current.get()()


def run_suite(
    suite: type[PluginTests] | str,
    *,
    fixtures: Mapping[str, Any] | None = None,
    examples: int = 100,
    shrink: bool = False,
    only: Sequence[str] = (),
) -> SuiteRun:
    """Run a suite, and say how each of its tests ended, in their order.

    Args:
        suite: the suite, or a test class made of it, or ``MODULE.CLASS`` below ``lmcache_kit.testing.suites``: a suite
            that pytest imports first tells what was compared where an assertion fails.
        fixtures: values of the suite's fixtures: ``plugin``, ``options`` and so on; those of ``suite`` for others.
        examples: how much is tried; 100 is what hypothesis's default profile tries.
        shrink: make failing examples smaller, which takes up to five minutes for each property that fails.
        only: names of tests; all when empty.

    Nothing that the plugin does raises from here. Raises LMCacheKitError when pytest itself could not run.
    """
    members = {name: _fixture(value) for name, value in (fixtures or {}).items()}
    outcomes = _Outcomes(only)
    with tempfile.TemporaryDirectory(prefix="lmcache-kit-check-") as name:
        folder = Path(name)
        # A name of its own: a module called the same would be taken from an earlier run.
        module = folder / f"test_{secrets.token_hex(8)}.py"
        module.write_text(_MODULE)
        (folder / "pytest.ini").write_text(_SETTINGS)
        current = _current.set(lambda: type("TestPlugin", (_class_of(suite),), members))
        effort, shrinks = EXAMPLES.set(examples), SHRINKS.set(shrink)
        try:
            with _alone(folder):
                code = pytest.main(
                    [
                        str(module),
                        *("--config-file", str(folder / "pytest.ini"), "--rootdir", str(folder)),
                        *("--basetemp", str(folder / "tmp"), "--import-mode", "importlib"),
                        *("-p", "no:cacheprovider", "-p", "no:terminal", "-p", "no:faulthandler"),
                    ],
                    plugins=[pytest_plugin, outcomes],
                )
        finally:
            for loaded in [each for each in sys.modules if each.endswith(module.stem)]:
                del sys.modules[loaded]
            SHRINKS.reset(shrinks)
            EXAMPLES.reset(effort)
            _current.reset(current)
    if outcomes.broken or code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise LMCacheKitError(f"the suite could not be run: {outcomes.broken or code!r}")
    return SuiteRun(list(outcomes.found.values()), sorted(outcomes.abilities))


def _class_of(suite: type[PluginTests] | str) -> type[PluginTests]:
    if not isinstance(suite, str):
        return suite
    module, name = suite.split(".")
    found: type[PluginTests] = getattr(importlib.import_module(f"lmcache_kit.testing.suites.{module}"), name)
    return found


def _fixture(value: Any) -> Any:
    return pytest.fixture(lambda self: value)


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
        self.found: dict[str, CheckResult] = {}
        self.abilities: set[str] = set()
        self.broken = ""

    @pytest.hookimpl
    def pytest_configure(self) -> None:
        # Once more: when the plugin's module was imported, no pytest was there yet.
        pytest.register_assert_rewrite(*pytest_plugin.REWRITTEN)

    @pytest.hookimpl
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self._only:
            items[:] = [item for item in items if item.name.partition("[")[0] in self._only]

    @pytest.hookimpl
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.broken = _one_line(str(report.longrepr))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        made = self.found.get(_FIRST)
        if made is not None and made.outcome == "failed":
            pytest.skip(NOT_TRIED)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        self._note(item, call, report)
        return report

    def _note(self, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
        known = self.found.get(item.name)
        if report.failed and call.excinfo is not None and (known is None or known.outcome != "failed"):
            self.found[item.name] = CheckResult(item.name, "failed", describe(call.excinfo.value))
            if report.when == "call":
                self.abilities.update(mark.args[0].__name__ for mark in item.iter_markers("ability"))
        elif report.skipped and call.excinfo is not None:
            self.found[item.name] = CheckResult(item.name, "skipped", _one_line(str(call.excinfo.value)))
        elif report.when == "call" and known is None:
            self.abilities.update(mark.args[0].__name__ for mark in item.iter_markers("ability"))
            detail = next((str(value) for key, value in report.user_properties if key == "detail"), "")
            self.found[item.name] = CheckResult(item.name, "passed", detail)


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
    # Hypothesis notes the example, what was drawn in it, and how to run it again, which is nothing to a reader here.
    notes = [_one_line(note) for note in getattr(error, "__notes__", ()) if not note.lstrip().startswith("You can")]
    return "; ".join([line, *notes])


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_DETAIL else text[: _LONGEST_DETAIL - 3] + "..."
