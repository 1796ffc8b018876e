"""``lmcache-kit trace``: files of recorded requests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lmcache_kit.cli.output import Format, FormatOption, print_json, print_table

__all__ = ["register"]

app = typer.Typer(help="Recorded request traces.", no_args_is_help=True)


def register(parent: typer.Typer) -> None:
    """Add the commands to the application."""
    parent.add_typer(app, name="trace")


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="The trace.")],
    reader: Annotated[str, typer.Option("--reader", help="Trace reader plugin that knows the format.")] = "mooncake",
    format: FormatOption = Format.TABLE,  # noqa: A002  (the option's name)
) -> None:
    """Show what a trace holds and the hit rates of a cache that never evicts."""
    from lmcache_kit.contracts.records import TracePlugin
    from lmcache_kit.plugins import registry
    from lmcache_kit.report.trace_info import trace_info

    plugins = registry()
    record = plugins.get(TracePlugin, reader)
    made = record.factory(plugins.options(record))
    facts = {"file": str(file), "reader": reader, **trace_info(made.read(file), made.format)}
    if format is Format.JSON:
        print_json(facts)
    else:
        print_table(["", ""], [(key.replace("_", " "), _shown(value)) for key, value in facts.items()])


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(below)}" for key, below in value.items())
    if isinstance(value, float):
        return f"{value:,.4f}" if abs(value) < 1 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
