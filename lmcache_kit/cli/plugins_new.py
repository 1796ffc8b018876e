"""``lmcache-kit plugins new``: a distribution of one's own, complete from the start."""

from __future__ import annotations

import enum
import shlex
from pathlib import Path
from typing import Annotated

import typer

from lmcache_kit.cli.output import Format, FormatOption, print_json, print_table
from lmcache_kit.contracts.records import PLUGIN_KINDS

__all__ = ["register"]

Kind = enum.StrEnum("Kind", {kind.upper(): kind for kind in PLUGIN_KINDS})  # type: ignore[misc]


def register(parent: typer.Typer) -> None:
    """Add the command beside the others of ``plugins``."""
    parent.command("new")(new)


def new(
    name: Annotated[str, typer.Argument(help="Name of the plugin and of its distribution, e.g. my-codec.")],
    kind: Annotated[Kind, typer.Option("--kind", help="What it is a plugin for.")],
    directory: Annotated[
        Path | None, typer.Option("--directory", metavar="DIR", help="Folder to write; ./NAME when left out.")
    ] = None,
    format: FormatOption = Format.TABLE,  # noqa: A002  (the option's name)
) -> None:
    """Write a plugin that installs, passes its conformance tests and measures something, to change into your own."""
    from lmcache_kit.plugin_templates import plugin_names, write_plugin
    from lmcache_kit.plugins import registry

    names = plugin_names(name, kind.value, registry())
    target = Path(names.distribution) if directory is None else directory
    files = write_plugin(names, kind.value, target)
    folder = shlex.quote(str(target))
    steps = [
        (f"pip install -e {shlex.quote(f'{_local(target)}[test]')}", "what it needs, and pytest"),
        (f"pytest {folder}", "the tests that every plugin of its kind passes"),
        (f"lmcache-kit run {shlex.quote(str(target / 'scenario.yaml'))}", "a small fleet that uses it"),
    ]
    if format is Format.JSON:
        print_json(
            {
                "plugin": names.package,
                "kind": kind.value,
                "directory": str(target),
                "files": [str(path) for path in files],
                "next": [command for command, _ in steps],
            }
        )
        return
    typer.echo(f"wrote {len(files)} files to {folder}: the {kind.value} plugin {names.package!r}. Next:")
    print_table(["command", "why"], steps)


def _local(target: Path) -> str:
    """A path that pip does not take for the name of a distribution."""
    return str(target) if target.is_absolute() else f"./{target}"
