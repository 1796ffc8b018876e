"""Runs the suite of one kind over its mutants, in a process of its own, and tells what became of each test.

``python -m mutants.suite_run KIND OUTCOMES.json`` runs, for every mutant, the tests that must catch it, and for the
sound plugins all tests that any mutant names. ``--all`` runs every test on every mutant: what a new mutant is caught
by, or whether by anything.

A process of its own, since hypothesis's settings are taken when a suite is loaded: here every run tries the same
examples, and a failing one is not made smaller. And since a broken plugin may leave anything behind. What a test lets
through it tries again with other examples, as it would in its author's next run: about one in two hundred is missed by
a hundred of them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import pytest
from mutants.kinds import SUITES, mutants_of, sound_of

from lmcache_kit.testing import pytest_plugin

__all__ = ["main"]

CASES = Path(__file__).with_name("cases.py")


class Outcomes:
    """A pytest plugin: leaves out what is not asked for, and keeps what each test came to.

    Args:
        wanted: names of tests by mutant; None for all tests of all.
    """

    def __init__(self, wanted: dict[str, set[str]] | None) -> None:
        self._wanted = wanted
        self._named = set().union(*wanted.values()) if wanted is not None else set()
        self.rows: dict[str, dict[str, list[str]]] = {}

    def pytest_configure(self) -> None:
        # Not before pytest has its hooks in place, which want to see hypothesis being imported.
        import hypothesis

        hypothesis.settings.register_profile(
            "mutants",
            max_examples=100,
            database=None,
            deadline=None,
            print_blob=False,
            report_multiple_bugs=False,
            phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        )
        hypothesis.settings.load_profile("mutants")
        # What a broken transport never does need not be waited for so long.
        from lmcache_kit.testing.suites import transport_site

        transport_site.LONG = 2.5

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self._wanted is not None:
            items[:] = [item for item in items if self._test(item) in self._wanted.get(self._mutant(item), self._named)]

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if self.rows.get(self._mutant(item), {}).get(self._test(item), [""])[0] == "failed":
            pytest.skip("one failing case of a parametrised test is enough")

    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        tests = self.rows.setdefault(self._mutant(item), {})
        error = call.excinfo
        if error is None:
            if call.when == "call":
                tests.setdefault(self._test(item), ["passed", "", ""])
            return
        skipped = error.errisinstance(pytest.skip.Exception)
        outcome = "skipped" if skipped else "failed" if call.when == "call" else "error"
        if tests.get(self._test(item), [""])[0] != "failed":
            text = next((line for line in str(error.value).splitlines() if line.strip()), "")
            tests[self._test(item)] = [outcome, self._types(error.value), text]

    @classmethod
    def _types(cls, error: BaseException) -> str:
        if isinstance(error, BaseExceptionGroup):
            return " ".join(dict.fromkeys(cls._types(each) for each in error.exceptions))
        return type(error).__name__

    @staticmethod
    def _mutant(item: pytest.Item) -> str:
        assert isinstance(item, pytest.Function)
        return item.cls.__name__.removeprefix("Test_")

    @staticmethod
    def _test(item: pytest.Item) -> str:
        return str(getattr(item, "originalname", item.name))


Rows = dict[str, dict[str, list[str]]]


def run(kind: str, wanted: dict[str, set[str]] | None, *, seed: int = 0) -> Rows:
    """``{mutant: {test: [outcome, types of the error, its first line]}}``."""
    os.environ["MUTANTS_KIND"] = kind
    outcomes = Outcomes(wanted)
    # As with an author who has installed nothing else: no settings of ours, no other plugin of pytest.
    plain = [f"-pno:{name}" for name in ("cacheprovider", "xdist", "asyncio", "timeout", "lmcache_kit")]
    plain += ["--noconftest", "-c", os.devnull, "--rootdir", str(CASES.parent), "-Werror", "--durations=15"]
    plain.append(f"--hypothesis-seed={seed}")
    plain.append("-Wignore::pytest.PytestAssertRewriteWarning")  # of what this module imported before pytest ran
    status = pytest.main([str(CASES), *plain, "-q", "--tb=short"], plugins=[outcomes, pytest_plugin])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise SystemExit(f"pytest could not run the suite of {kind}: {status!r}")
    return outcomes.rows


def run_until_caught(kind: str) -> Rows:
    """As ``run``; what passes although its mutant is broken runs again, a few times."""
    broken = {mutant.name: set(mutant.caught_by) for mutant in mutants_of(kind)}
    rows = run(kind, broken)
    for seed in range(1, 6):
        passed = {
            name: {test for test in tests if rows.get(name, {}).get(test, [""])[0] == "passed"}
            for name, tests in broken.items()
        }
        if not any(passed.values()):
            break
        sound = {each.name: set[str]() for each in sound_of(kind)}
        for name, tests in run(kind, {**sound, **passed}, seed=seed).items():
            rows[name].update(tests)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=SUITES)
    parser.add_argument("outcomes", type=Path)
    parser.add_argument("--all", action="store_true", help="every test on every mutant")
    arguments = parser.parse_args()
    rows = run(arguments.kind, None) if arguments.all else run_until_caught(arguments.kind)
    arguments.outcomes.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    sys.path.insert(0, str(CASES.parents[1]))
    main()
