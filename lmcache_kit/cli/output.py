"""How commands show results: a table for people, one JSON value for programs."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import typer

from lmcache_kit.units import format_duration, format_size

__all__ = ["Format", "FormatOption", "print_facts", "print_json", "print_table", "shown_fact"]


class Format(enum.StrEnum):
    """``--format``."""

    TABLE = "table"
    JSON = "json"


FormatOption = Annotated[Format, typer.Option("--format", help="table for people, json for programs.")]


def print_json(value: Any) -> None:
    """One JSON value on stdout, indented."""
    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, spare: str | None = None) -> None:
    """A table on stdout. Wide cells wrap in a terminal; piped output is never cut.

    Args:
        columns: headings.
        rows: cells; None is an empty one.
        spare: a column that is left out, which a line on stderr says, where the terminal is too narrow for all.
    """
    from lmcache_kit.text_table import terminal_width, text_table, width_of

    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    width = terminal_width()
    if spare is not None and width is not None and width_of(text_table(columns, texts)) > width:
        kept = [index for index, column in enumerate(columns) if column != spare]
        columns = [columns[index] for index in kept]
        texts = [[row[index] for index in kept] for row in texts]
        typer.echo(f"(too narrow for the column {spare!r}; --format json has it)", err=True)
    typer.echo(text_table(columns, texts, width=width), nl=False)


def print_facts(facts: Mapping[str, object]) -> None:
    """One line per fact on stdout, with units where the name tells them; None is left out."""
    rows = [(key, shown_fact(key, value)) for key, value in facts.items() if value is not None]
    print_table(["", ""], rows)


def shown_fact(key: str, value: object) -> str:
    """A value as a person reads it: sizes, durations and large numbers with their units."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and key.startswith("bytes_"):
        return f"{format_size(value)} ({value:,} bytes)"
    if isinstance(value, int | float) and key.endswith("seconds"):
        return format_duration(value)
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.1f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown_fact(key, below)}" for name, below in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(shown_fact(key, each) for each in value)
    return str(value)
