"""``lmcache-kit scenario``: the scenarios that ship, and checks of your own."""

from __future__ import annotations

from typing import Annotated

import typer

from lmcache_kit.cli.output import Format, FormatOption, print_json, print_table
from lmcache_kit.units import format_count

__all__ = ["register"]

app = typer.Typer(help="Scenarios.", no_args_is_help=True)

NameArgument = Annotated[
    str, typer.Argument(metavar="SCENARIO", help="A YAML file, or the name of a shipped scenario.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change one value, e.g. instances.0.chunk_size=64."),
]


def register(parent: typer.Typer) -> None:
    """Add the commands to the application."""
    parent.add_typer(app, name="scenario")


@app.command("list")
def list_scenarios(format: FormatOption = Format.TABLE) -> None:  # noqa: A002  (the option's name)
    """List the scenarios that ship with lmcache-kit."""
    from lmcache_kit.scenario import load_scenario, shipped_scenarios

    rows = [(name, load_scenario(path).summary, str(path)) for name, path in shipped_scenarios().items()]
    if format is Format.JSON:
        print_json([{"name": name, "summary": summary, "path": path} for name, summary, path in rows])
    else:
        print_table(["name", "summary"], [row[:2] for row in rows])


@app.command()
def show(name: NameArgument, overrides: SetOption = None, format: FormatOption = Format.TABLE) -> None:  # noqa: A002
    """Show a scenario with every default filled in, as YAML (or JSON with --format json)."""
    from lmcache_kit.scenario import dump_scenario, find_scenario, load_scenario, scenario_to_data

    scenario = load_scenario(find_scenario(name), overrides or ())
    if format is Format.JSON:
        print_json(scenario_to_data(scenario))
    else:
        typer.echo(dump_scenario(scenario), nl=False)


@app.command()
def validate(name: NameArgument, overrides: SetOption = None, format: FormatOption = Format.TABLE) -> None:  # noqa: A002
    """Check a scenario against the installed plugins without booting anything."""
    from lmcache_kit.plugins import registry
    from lmcache_kit.scenario import find_scenario, load_scenario
    from lmcache_kit.scenario import validate as check

    path = find_scenario(name)
    scenario = load_scenario(path, overrides or ())
    check(scenario, registry())
    if format is Format.JSON:
        print_json({"scenario": scenario.name, "path": str(path), "valid": True})
    else:
        sizes = (len(scenario.instances), len(scenario.workloads), len(scenario.expect))
        counted = ", ".join(map(format_count, sizes, ("instances", "workloads", "expectations")))
        typer.echo(f"{scenario.name}: valid; {counted}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of a scenario, with the options of every installed plugin."""
    from lmcache_kit.plugins import registry
    from lmcache_kit.scenario import scenario_schema

    print_json(scenario_schema(registry()))
