"""``lmcache-kit trace``: files of recorded requests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmcache_kit.cli.output import Format, FormatOption, print_facts, print_json

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
    from lmcache_kit.errors import ConfigError, InvalidRequestError
    from lmcache_kit.plugins import registry
    from lmcache_kit.report.trace_info import trace_info

    plugins = registry()
    record = plugins.get(TracePlugin, reader)
    made = record.factory(plugins.options(record))
    try:
        facts = {"file": str(file), "reader": reader, **trace_info(made.read(file), made.format)}
    except InvalidRequestError as error:
        # The file is what the user named: as with a scenario that cannot be read.
        raise ConfigError(error.message, hint=error.hint) from None
    if format is Format.JSON:
        print_json(facts)
    else:
        print_facts({key.replace("_", " "): value for key, value in facts.items()})
