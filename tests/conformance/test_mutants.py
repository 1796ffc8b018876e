"""The suites catch what they are for: every deliberately broken plugin of ``mutants`` fails the tests that must notice.

The suite of one kind runs over all mutants of that kind in one process of its own (``mutants/suite_run.py``).
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
TIMEOUT = 100.0

sys.path.append(str(HERE))  # the mutants are a package that only these tests and their child processes know
try:
    KINDS = importlib.import_module("mutants.kinds")
    MUTANTS = [(kind, mutant) for kind in KINDS.SUITES for mutant in KINDS.mutants_of(kind)]
finally:
    sys.path.remove(str(HERE))


@functools.cache
def outcomes(kind: str) -> dict[str, dict[str, list[str]]]:
    """``{mutant: {test: [outcome, types of the error, its first line]}}``."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outcomes.json"
        done = subprocess.run(
            [sys.executable, "-m", "mutants.suite_run", kind, str(file)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.getenv("PYTHONPATH")])])},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert file.exists(), f"the suite of {kind} did not run to its end:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        found: dict[str, dict[str, list[str]]] = json.loads(file.read_text())
        return found


def test_there_are_mutants_of_every_kind() -> None:
    assert {kind for kind, _ in MUTANTS} == set(KINDS.SUITES)
    names = [mutant.name for _, mutant in MUTANTS]
    assert len(names) == len(set(names)) >= 150
    assert not [name for name, (_, mutant) in zip(names, MUTANTS, strict=True) if not mutant.caught_by]


@pytest.mark.parametrize(("kind", "mutant"), MUTANTS, ids=[f"{kind}-{mutant.name}" for kind, mutant in MUTANTS])
def test_the_suite_catches(kind: str, mutant: Any) -> None:
    found = outcomes(kind).get(mutant.name, {})
    for test in mutant.caught_by:
        assert test in found, f"the suite of {kind} has no test {test}"
        outcome, errors, text = found[test]
        assert outcome == "failed", f"{mutant.name}, {mutant.wrong}: {test} {outcome} {text}"
        # A mutant that fails by a slip of its own shows nothing of the suite.
        expected = {"AssertionError", "Failed", "FlakyFailure", "Flaky", *mutant.errors}
        assert set(errors.split()) <= expected, f"{mutant.name} fails {test} for another reason: {errors}: {text}"


@pytest.mark.parametrize("kind", KINDS.SUITES)
def test_what_the_mutants_were_made_from_passes(kind: str) -> None:
    """Each test that catches a mutant passes for sound plugins, and is not skipped for all of them."""
    found = outcomes(kind)
    sound = [each.name for each in KINDS.sound_of(kind)]
    bad = {
        (name, test): row for name in sound for test, row in found[name].items() if row[0] not in ("passed", "skipped")
    }
    assert not bad
    passed = {test for name in sound for test, row in found[name].items() if row[0] == "passed"}
    named = {test for of, mutant in MUTANTS if of == kind for test in mutant.caught_by}
    assert named <= passed, f"no sound plugin passes {', '.join(sorted(named - passed))}"
