"""Tables as plain text: aligned columns, no colours, no trailing blanks."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Collection, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["terminal_width", "text_table", "width_of"]

_UNBOUNDED = 100_000


def terminal_width() -> int | None:
    """Columns of the terminal that stdout is; None when it is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def text_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    width: int | None = None,
    numeric: Collection[str] = (),
) -> str:
    """The table, ending with a newline; without a heading when no column has a name.

    Args:
        columns: headings.
        rows: one text per column.
        width: cells wrap to stay within it; None: as wide as the longest cell wants.
        numeric: headings of columns that are flush right and never wrap.
    """
    headed = any(columns)
    table = Table(
        box=box.SIMPLE_HEAD if headed else box.SIMPLE,
        show_header=headed,
        show_edge=headed,
        pad_edge=True,
        header_style="",
    )
    for column in columns:
        right = column in numeric
        table.add_column(column, justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in rows:
        # As Text: rich would read "[...]" in a plain string as markup.
        table.add_row(*map(Text, row))
    # Without a heading there is no edge; the blank in its place keeps the tables of one answer in line.
    indent = "" if headed else " "
    file = io.StringIO()
    Console(file=file, width=(width or _UNBOUNDED) - len(indent), color_system=None, legacy_windows=False).print(table)
    return "\n".join((indent + line).rstrip() for line in file.getvalue().splitlines()) + "\n"


def width_of(text: str) -> int:
    """Length of the longest line."""
    return max(map(len, text.splitlines()), default=0)
