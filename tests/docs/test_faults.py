"""docs/explanation/faults.md names tests that exist, at least one for each of the twelve faults."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "explanation" / "faults.md").read_text()


def test_every_fault_has_tests_that_exist() -> None:
    rows = {int(row[1]): row[0] for row in re.finditer(r"^\| (\d+) \|.*$", PAGE, re.MULTILINE)}
    assert list(rows) == list(range(1, 13))
    for number, row in rows.items():
        named = re.findall(r"`(tests/[\w/.]+)::(\w+)`", row)
        assert named, number
        for path, name in named:
            assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path}::{name}"


def test_the_files_named_exist() -> None:
    for path in re.findall(r"`(tests/[\w/.]+)`", PAGE):
        assert (ROOT / path).is_file(), path
