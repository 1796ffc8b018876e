"""docs/reference/testing.md: its tables are what the code has, its code runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lmcache_kit import testing
from lmcache_kit.testing import pytest_plugin, strategies
from lmcache_kit.testing.checking import suite_of
from lmcache_kit.testing.comparison import KINDS

TEXT = (Path(__file__).parents[2] / "docs" / "reference" / "testing.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line.startswith("| ")]
INHERITED = {"plugin", "options", "record", "made_options", "subject"}


def names(cell: str) -> set[str]:
    return set(re.findall(r"`([A-Za-z_]+)`", cell))


def test_every_suite_is_listed_with_its_capabilities_and_abilities() -> None:
    listed = {row[0]: row for row in ROWS if len(row) == 4 and row[0] in KINDS}
    assert {suite for row in listed.values() for suite in names(row[1])} == {*testing.__all__} - {"strategies"}
    for kind, row in listed.items():
        suite = suite_of(kind)
        assert names(row[1]) == {suite.__name__}
        assert names(row[2]) == suite.capabilities
        tests = [getattr(suite, name) for name in dir(suite) if name.startswith("test_")]
        marks = [mark for test in tests for mark in getattr(test, "pytestmark", [])]
        assert names(row[3]) == {mark.args[0].__name__ for mark in marks if mark.name == "ability"}
        assert {mark.args[0] for mark in marks if mark.name == "capability"} <= suite.capabilities


def test_fixtures_are_those_of_the_suites() -> None:
    listed = {
        (next(iter(names(row[0]))), next(iter(names(row[1])))) for row in ROWS if len(row) == 4 and "Tests`" in row[0]
    }
    for suite, fixture in listed:
        assert hasattr(getattr(testing, suite), fixture)
    for fixture in ("plugin", "options"):
        assert any(row[0] == f"`{fixture}`" for row in ROWS)
    for suite, attribute in (("CompressionMethodTests", "kv_of_models"), ("TraceReaderTests", "rows_are_lines")):
        assert hasattr(getattr(testing, suite), attribute)
        assert attribute in TEXT


def test_every_strategy_and_marker_is_listed() -> None:
    listed = {match[1] for row in ROWS if (match := re.match(r"`([a-z_]+)\(.*\)`$", row[0]))}
    assert listed == {*strategies.__all__} | {marker.partition("(")[0] for marker in pytest_plugin.MARKERS}


def test_reasons_of_skips_are_those_of_the_code() -> None:
    folder = Path(testing.__file__).parent / "suites"
    code = "".join(path.read_text() for path in folder.glob("*.py"))
    (head,) = (row for row in ROWS if row[0] == "it begins with")
    reasons = ROWS[ROWS.index(head) + 2 :][:7]
    for row in reasons:
        for reason in re.findall(r"`([^`]+)`", row[0]):
            assert f'"{reason}' in code, reason


def test_every_kind_of_figures_is_listed() -> None:
    assert {row[0] for row in ROWS if len(row) == 2 and row[0] in KINDS} == set(KINDS)


@pytest.mark.parametrize("number", [0, 2])
def test_the_tests_of_the_page_pass(number: int, tmp_path: Path) -> None:
    block = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)[number]
    (tmp_path / "test_page.py").write_text(block)
    arguments = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    # Of the suite, what takes no time: the whole of it is run in tests/conformance.
    few = ["-k", "record or declared or made or later or accident"]
    done = subprocess.run(
        [*arguments, *few, str(tmp_path / "test_page.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


def test_the_command_of_the_page_works(tmp_path: Path) -> None:
    (command,) = re.findall(r"^```bash\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-e", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failed" in done.stdout
    assert list(tmp_path.iterdir()) == []
