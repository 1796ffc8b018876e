"""The suites catch what they are for: every deliberately broken plugin of ``mutants`` fails the tests that must notice.

The suite of one kind runs over all mutants of that kind in one process of its own (``mutants/suite_run.py``).
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
TIMEOUT = 280.0

pytestmark = pytest.mark.timeout(300)  # the first test of a kind waits for the run of all of its mutants

sys.path.append(str(HERE))  # the mutants are a package that only these tests and their child processes know
try:
    KINDS = importlib.import_module("mutants.kinds")
    MUTANTS = [(kind, mutant) for kind in KINDS.SUITES for mutant in KINDS.mutants_of(kind)]
finally:
    sys.path.remove(str(HERE))


def run_suite(kind: str, file: Path) -> dict[str, dict[str, list[str]]]:
    """``{mutant: {test: [outcome, types of the error, its first line]}}``; kept in ``file`` for other processes."""
    with open(file.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            done = subprocess.run(
                [sys.executable, "-m", "mutants.suite_run", kind, str(file)],
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.getenv("PYTHONPATH")])]),
                },
                cwd=file.parent,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
            )
            told = done.stdout[-3000:] + done.stderr[-3000:]
            assert file.exists(), f"the suite of {kind} did not run to its end:\n{told}"
    found: dict[str, dict[str, list[str]]] = json.loads(file.read_text())
    return found


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The run of each kind that a chosen test asks for, two at a time: that of the transports mostly waits."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # the same one for all workers
    chosen = {item.callspec.params.get("kind") for item in request.session.items if hasattr(item, "callspec")}
    kinds = sorted(chosen & set(KINDS.SUITES), key=lambda kind: kind != "transport")
    with ThreadPoolExecutor(2) as pool:
        yield {kind: pool.submit(run_suite, kind, base / f"mutants_{kind}.json") for kind in kinds}


def test_there_are_mutants_of_every_kind() -> None:
    assert {kind for kind, _ in MUTANTS} == set(KINDS.SUITES)
    names = [mutant.name for _, mutant in MUTANTS]
    assert len(names) == len(set(names)) >= 150
    assert not [name for name, (_, mutant) in zip(names, MUTANTS, strict=True) if not mutant.caught_by]


@pytest.mark.parametrize(("kind", "mutant"), MUTANTS, ids=[f"{kind}-{mutant.name}" for kind, mutant in MUTANTS])
def test_the_suite_catches(runs: dict[str, Any], kind: str, mutant: Any) -> None:
    found = runs[kind].result().get(mutant.name, {})
    for test in mutant.caught_by:
        assert test in found, f"the suite of {kind} has no test {test}"
        outcome, errors, text = found[test]
        assert outcome == "failed", f"{mutant.name}, {mutant.wrong}: {test} {outcome} {text}"
        # A mutant that fails by a slip of its own shows nothing of the suite.
        expected = {"AssertionError", "Failed", "FlakyFailure", "Flaky", *mutant.errors}
        assert set(errors.split()) <= expected, f"{mutant.name} fails {test} for another reason: {errors}: {text}"


@pytest.mark.parametrize("kind", KINDS.SUITES)
def test_what_the_mutants_were_made_from_passes(runs: dict[str, Any], kind: str) -> None:
    """Each test that catches a mutant passes for sound plugins, and is not skipped for all of them."""
    found = runs[kind].result()
    sound = [each.name for each in KINDS.sound_of(kind)]
    bad = {
        (name, test): row for name in sound for test, row in found[name].items() if row[0] not in ("passed", "skipped")
    }
    assert not bad
    passed = {test for name in sound for test, row in found[name].items() if row[0] == "passed"}
    named = {test for of, mutant in MUTANTS if of == kind for test in mutant.caught_by}
    assert named <= passed, f"no sound plugin passes {', '.join(sorted(named - passed))}"
