"""The page on reliability shows its recorded run and its list of bugs, and every test that it names is there."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "docs" / "benchmarks" / "reliability"
BUGS = json.loads((FOLDER / "bugs.json").read_text())
RUN = json.loads((FOLDER / "deep.json").read_text())


@pytest.fixture
def reliability(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    spec = importlib.util.spec_from_file_location("reliability_script", REPOSITORY / "benchmarks" / "reliability.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_from_the_run_and_the_bugs(reliability):
    assert (FOLDER / "README.md").read_text() == reliability.page(RUN, BUGS)


def test_the_recorded_run_was_deep():
    assert RUN["totals"]["steps"] >= 20_000
    assert RUN["totals"]["steps"] == sum(test["steps"] for test in RUN["tests"])
    assert RUN["totals"]["cases"] == sum(test["cases"] for test in RUN["tests"])
    assert RUN["totals"]["failures"] == 0


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug["test"].rpartition("::")[2])
def test_every_bug_has_its_regression_test(bug):
    assert set(bug) == {"bug", "found_by", "test"}
    file, _, name = bug["test"].partition("::")
    *classes, function = re.sub(r"\[.*\]$", "", name).split("::")
    text = (REPOSITORY / file).read_text()
    assert re.search(rf"def {function}\(|^{function} = ", text, re.M), f"{file} has no {function}"
    assert all(re.search(rf"^class {one}\b", text, re.M) for one in classes)
