"""``lmcache-kit trace``: files of recorded requests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lmcache_kit.cli.output import Format, FormatOption, print_facts, print_json

if TYPE_CHECKING:
    from lmcache_kit.contracts.trace import TraceFormat, TraceRecord

__all__ = ["register"]

app = typer.Typer(help="Recorded request traces.", no_args_is_help=True)

FileArgument = Annotated[Path, typer.Argument(help="The trace: a file, or a folder where the format has folders.")]
ReaderOption = Annotated[str, typer.Option("--reader", help="Trace reader plugin that knows the format.")]
OptionsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Option of the reader; may be given several times."),
]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Only the earliest so many requests.")]


def register(parent: typer.Typer) -> None:
    """Add the commands to the application."""
    parent.add_typer(app, name="trace")


@app.command()
def info(
    file: FileArgument,
    reader: ReaderOption = "mooncake",
    options: OptionsOption = None,
    limit: LimitOption = None,
    format: FormatOption = Format.TABLE,  # noqa: A002  (the option's name)
) -> None:
    """Show what a trace holds, what it cannot tell, and the hit rates of a cache that never evicts."""
    from lmcache_kit.report.trace_info import trace_info

    form, records = _load(file, reader, options, limit)
    facts = {"file": str(file), "reader": reader, **trace_info(records, form)}
    if format is Format.JSON:
        print_json(facts)
        return
    untold = facts.pop("untold")
    facts["first_admission"] = {key: value for key, value in facts["first_admission"].items() if value is not None}
    print_facts({key.replace("_", " "): value for key, value in facts.items()})
    for line in untold:
        typer.echo(f"it says nothing of {line}")


@app.command()
def convert(
    file: FileArgument,
    output: Annotated[Path, typer.Argument(help="The file to write; it must not exist.")],
    reader: ReaderOption = "mooncake",
    to: Annotated[Literal["mooncake"], typer.Option("--to", help="Format to write: JSON lines of Mooncake.")] = (
        "mooncake"
    ),
    options: OptionsOption = None,
    limit: LimitOption = None,
    spread: Annotated[
        bool, typer.Option("--spread", help="Spread requests that share a time stamp over the time up to the next.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of --spread.")] = 0,
    longest_gap: Annotated[
        float | None, typer.Option("--longest-gap", min=0, metavar="SECONDS", help="Most that --spread spreads over.")
    ] = None,
    format: FormatOption = Format.TABLE,  # noqa: A002  (the option's name)
) -> None:
    """Write a trace in the normal form: in order of time, with chained ids of one scope."""
    import dataclasses
    import random

    from lmcache_kit.errors import ConfigError
    from lmcache_kit.traces.lines import mooncake_lines
    from lmcache_kit.traces.spreading import spread_bursts

    form, records = _load(file, reader, options, limit)
    facts: dict[str, Any] = {"file": str(file), "reader": reader, "output": str(output), "written_as": to}
    if spread:
        rng = random.Random(seed)  # noqa: S311  (reproducible, not secret)
        records, done = spread_bursts(records, rng, longest_gap=longest_gap)
        facts["spread"] = {"seed": seed, **dataclasses.asdict(done)}
    try:
        # A trace is nobody's to lose: an existing file is refused, not replaced.
        with output.open("xb") as lines:
            lines.writelines(line + b"\n" for line in mooncake_lines(records, form))
    except OSError as error:
        raise ConfigError(f"{output} cannot be written: {error.strerror}") from None
    facts["requests"] = len(records)
    if format is Format.JSON:
        print_json(facts)
    else:
        print_facts({key.replace("_", " "): value for key, value in facts.items()})


def _load(
    file: Path, reader: str, options: list[str] | None, limit: int | None
) -> tuple[TraceFormat, list[TraceRecord]]:
    from lmcache_kit.cli.values import key_values
    from lmcache_kit.errors import ConfigError, InvalidRequestError
    from lmcache_kit.traces import load_trace

    try:
        return load_trace(file, reader, limit=limit, options=key_values(options or (), "--set"))
    except InvalidRequestError as error:
        # The file is what the user named: as with a scenario that cannot be read.
        raise ConfigError(error.message, hint=error.hint) from None
