"""The report as tables for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lmcache_kit.builtin.reporters.cells import (
    COLUMNS,
    FACTS,
    GROUPS,
    NUMERIC,
    cells,
    expectation_cells,
    facts,
    notes,
    used,
)
from lmcache_kit.contracts.reporter import Reporter
from lmcache_kit.text_table import terminal_width, text_table, width_of

__all__ = ["TableReporter"]


class TableReporter(Reporter):
    """Plain text without colours.

    Args:
        width: columns to stay within; the terminal's when None, or 140 in a file or a pipe.
    """

    def __init__(self, *, width: int | None = None) -> None:
        self.width = width or terminal_width() or 140

    def render(self, report: Mapping[str, Any]) -> str:
        head = f"{report['scenario']}: {report['status']}"
        parts = [f"{head} in {report['seconds']:.1f} s ({report['clock']} clock, seed {report['seed']})\n"]
        if report.get("error"):
            parts.append(f"error: {report['error']}\n")
        results: Sequence[Mapping[str, Any]] = report["results"]
        if results:
            parts += [*self._results(results), self._notes(results), self._table(FACTS, map(facts, results))]
        outcomes: Sequence[Mapping[str, Any]] = report["expectations"]
        if outcomes:
            parts.append(self._table(("expectation", "wanted", "got", ""), map(expectation_cells, outcomes)))
        return "".join(parts)

    def _results(self, results: Sequence[Mapping[str, Any]]) -> list[str]:
        """One table; several with some of the columns each where one is too wide: broken numbers cannot be read."""
        rows = [dict(zip(COLUMNS, cells(result), strict=True)) for result in results]

        def table(columns: Sequence[str], *, bounded: bool) -> str:
            return self._table(columns, [[row[column] for column in columns] for row in rows], bounded=bounded)

        parts: list[tuple[str, ...]] = [COLUMNS[:1]]
        for group in GROUPS:
            longer = parts[-1] + group
            if len(parts[-1]) == 1 or width_of(table(longer, bounded=False)) <= self.width:
                parts[-1] = longer
            else:
                parts.append(COLUMNS[:1] + group)
        return [table(columns, bounded=True) for columns in parts]

    def _notes(self, results: Sequence[Mapping[str, Any]]) -> str:
        lines = [line for note in notes(results) for line in textwrap.wrap(note, min(self.width, 120) - 2)]
        return "".join(f"  {line}\n" for line in lines)

    def _table(self, columns: Sequence[str], rows: Iterable[Sequence[str]], *, bounded: bool = True) -> str:
        lines = list(rows)
        kept = used(columns, lines)
        return text_table(
            [columns[index] for index in kept],
            [[line[index] for index in kept] for line in lines],
            width=self.width if bounded else None,
            numeric=NUMERIC,
        )
