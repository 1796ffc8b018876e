"""``lmcache-kit plugins``: what is installed, and whether it works."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import msgspec
import typer

from lmcache_kit.cli import plugins_check, plugins_new
from lmcache_kit.cli.output import Format, FormatOption, print_facts, print_json, print_table
from lmcache_kit.contracts.records import Plugin
from lmcache_kit.errors import LMCacheKitError, UnknownNameError
from lmcache_kit.plugins import RegisteredPlugin, registry

__all__ = ["register"]

app = typer.Typer(help="Installed plugins.", no_args_is_help=True)
plugins_check.register(app)
plugins_new.register(app)


def register(parent: typer.Typer) -> None:
    """Add the commands to the application."""
    parent.add_typer(app, name="plugins")


NameArgument = Annotated[str, typer.Argument(help="Name of a plugin, as `plugins list` shows it.")]


@app.command("list")
def list_plugins(
    kind: Annotated[str | None, typer.Option("--kind", help="Only this kind, e.g. storage.")] = None,
    format: FormatOption = Format.TABLE,  # noqa: A002  (the option's name)
) -> None:
    """List every plugin, and those that could not be loaded."""
    found = registry()
    entries = [entry for each in ([kind] if kind else found.kinds()) for entry in found.all(each)]
    if format is Format.JSON:
        print_json(
            {
                "plugins": [_facts(entry) for entry in entries],
                "broken": [{"source": broken.source, "reason": broken.reason} for broken in found.broken],
            }
        )
        return
    print_table(
        ["kind", "name", "summary", "from"],
        [(entry.record.kind, entry.record.name, entry.record.summary, entry.distribution) for entry in entries],
        spare="from",
    )
    for broken in found.broken:
        typer.echo(f"not used: {broken.source}: {broken.reason}", err=True)


@app.command()
def show(name: NameArgument, format: FormatOption = Format.TABLE) -> None:  # noqa: A002
    """Show one plugin: where it comes from, its capabilities and its options."""
    entries = find_plugins(name)
    if format is Format.JSON:
        print_json([_facts(entry) for entry in entries])
        return
    for entry in entries:
        facts = _facts(entry)
        print_facts({key: value for key, value in facts.items() if key != "options"})
        if facts["options"]:
            print_table(
                ["option", "type", "default"],
                [(option, value["type"], value["default"]) for option, value in facts["options"].items()],
            )


def find_plugins(name: str) -> list[RegisteredPlugin]:
    """Plugins of any kind called ``name``. Raises LMCacheKitError, saying why, when there is none to be used."""
    found = registry()
    # A distribution is called my-codec where its plugin is called my_codec.
    entries = found.find(name) or found.find(name.replace("-", "_"))
    if not entries:
        if broken := found.refused(name):
            raise LMCacheKitError(f"plugin {name!r} is not used: {broken[0].reason}")
        raise UnknownNameError(
            "plugin", name, {entry.record.name for kind in found.kinds() for entry in found.all(kind)}
        )
    return entries


def _facts(entry: RegisteredPlugin) -> dict[str, Any]:
    record = entry.record
    schema = msgspec.json.schema_components([record.options])[1].get(record.options.__name__, {})
    options = {}
    for field in msgspec.structs.fields(record.options):
        described = schema.get("properties", {}).get(field.encode_name, {})
        kinds = [each.get("type", "object") for each in described.get("anyOf", [described])]
        required = field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT
        options[field.encode_name] = {
            "type": " or ".join(kinds),
            "default": "required" if required else described.get("default"),
        }
    return {
        "kind": record.kind,
        "name": record.name,
        "summary": record.summary,
        **_facts_of_kind(record),
        "source": entry.source,
        "distribution": entry.distribution,
        "api_version": record.api_version,
        "capabilities": sorted(record.capabilities),
        "options": options,
    }


def _facts_of_kind(record: Plugin) -> dict[str, Any]:
    """What records of one kind say beside what all records say, e.g. a storage backend's location."""
    common = {field.name for field in dataclasses.fields(Plugin)} | {"factory"}
    names = [field.name for field in dataclasses.fields(record) if field.name not in common]
    values = {name: getattr(record, name) for name in names}
    return {
        # Of a callable, such as an engine's server, all that can be told is that it is there.
        name: sorted(value) if isinstance(value, frozenset) else True if callable(value) else value
        for name, value in values.items()
        if value is not None
    }
