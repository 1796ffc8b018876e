"""``lmcache-kit plugins check``: the conformance suite of an installed plugin, and how it compares."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from lmcache_kit.cli.output import Format, FormatOption, print_facts, print_json, print_table, shown_fact
from lmcache_kit.cli.values import key_values
from lmcache_kit.errors import LMCacheKitError

if TYPE_CHECKING:
    from lmcache_kit.testing.checking import CheckReport

__all__ = ["register"]


def register(parent: typer.Typer) -> None:
    """Add the command beside the others of ``plugins``."""
    parent.command("check")(check)


def check(
    name: Annotated[str, typer.Argument(help="Name of a plugin, as `plugins list` shows it.")],
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Option of the plugin, e.g. url=redis://host; may be given several times.",
        ),
    ] = None,
    sample: Annotated[
        Path | None,
        typer.Option("--sample", metavar="FILE", exists=True, help="Of a trace reader: a well-formed file."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Try fewer examples, and compare with nothing.")] = False,
    format: FormatOption = Format.TABLE,  # noqa: A002  (the option's name)
) -> None:
    """Run a plugin's conformance suite: what it declares, what it passes, and how it compares with the built-ins."""
    from lmcache_kit.cli.plugins import find_plugins
    from lmcache_kit.plugins import registry

    values = key_values(options or (), "--set")
    entries = find_plugins(name)
    if values:
        # A wrong option is the caller's mistake and says nothing about the plugin.
        for entry in entries:
            registry().options(entry.record, values)
    try:
        from lmcache_kit.testing.checking import check_plugin
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("pytest", "hypothesis"):
            raise
        raise LMCacheKitError(
            f"the conformance suites need {error.name}, which is not installed",
            hint="pip install 'lmcache-kit[testing]'",
        ) from None
    reports = []
    for entry in entries:
        report = check_plugin(entry.record, options=values, quick=quick, sample=sample)
        reports.append(report)
        if format is Format.TABLE:
            _show(report, entry.distribution)
    if format is Format.JSON:
        print_json([msgspec.to_builtins(report) for report in reports])
    if any(report.failed for report in reports):
        raise typer.Exit(1)


def _show(report: CheckReport, distribution: str) -> None:
    print_facts(
        {
            "kind": report.kind,
            "name": report.name,
            "from": distribution,
            "declares": ", ".join(report.capabilities) or "no capabilities",
            "offers": ", ".join(report.abilities) or "no optional abilities",
        }
    )
    print_table(
        ["check", "result", "detail"],
        [(_sentence(result.check), result.outcome, result.detail) for result in report.results],
    )
    counts = [
        f"{sum(result.outcome == outcome for result in report.results)} {outcome}"
        for outcome in ("passed", "failed", "skipped")
    ]
    typer.echo(", ".join(counts))
    if report.comparison is None:
        return
    columns = report.comparison.columns()
    rows = [row for row in report.comparison.rows if row.problem is None]
    if rows:
        typer.echo("\nbeside the built-ins:" if len(rows) > 1 else "\nmeasured:")
        print_table(
            ["plugin", *columns],
            [
                (
                    row.plugin,
                    *("" if value is None else shown_fact("", value) for value in map(row.figures.get, columns)),
                )
                for row in rows
            ],
        )
    for row in report.comparison.rows:
        if row.problem is not None:
            typer.echo(f"not compared: {row.plugin}: {row.problem}", err=True)


def _sentence(test: str) -> str:
    """``test_a_put_replaces_the_object_whole[x]`` as people read it."""
    return test.removeprefix("test_").replace("_", " ")
