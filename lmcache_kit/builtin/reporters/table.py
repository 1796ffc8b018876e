"""The report as tables for a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmcache_kit.builtin.reporters.cells import COLUMNS, FACTS, NUMERIC, cells, expectation_cells, facts
from lmcache_kit.contracts.reporter import Reporter

__all__ = ["TableReporter"]


class TableReporter(Reporter):
    """Plain text without colours, at most ``width`` wide."""

    width = 140

    def render(self, report: Mapping[str, Any]) -> str:
        console = Console(file=io.StringIO(), width=self.width, color_system=None, legacy_windows=False)
        head = f"{report['scenario']}: {report['status']}"
        console.print(
            f"{head} in {report['seconds']:.1f} s ({report['clock']} clock, seed {report['seed']})", markup=False
        )
        if report.get("error"):
            console.print(f"error: {report['error']}", markup=False)
        results: Sequence[Mapping[str, Any]] = report["results"]
        if results:
            console.print(_table(COLUMNS, map(cells, results)))
            console.print(_table(FACTS, map(facts, results)))
        outcomes: Sequence[Mapping[str, Any]] = report["expectations"]
        if outcomes:
            console.print(_table(("expectation", "wanted", "got", ""), map(expectation_cells, outcomes)))
        assert isinstance(console.file, io.StringIO)
        return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    lines = list(rows)
    # A column that says nothing in any line only takes room.
    used = [index for index in range(len(columns)) if any(line[index] not in ("", "-") for line in lines)]
    table = Table(box=box.SIMPLE_HEAD)
    for index in used:
        right = columns[index] in NUMERIC
        table.add_column(columns[index], justify="right" if right else "left", no_wrap=right, overflow="fold")
    for line in lines:
        # As Text: rich would read "[...]" in a plain string as markup.
        table.add_row(*(Text(line[index]) for index in used))
    return table
