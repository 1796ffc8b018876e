"""JSON Schema of a scenario, with the options of every installed plugin in it, for editors and generators."""

from __future__ import annotations

from typing import Any

import msgspec

from lmcache_kit.contracts.records import PLUGIN_KINDS, EnginePlugin
from lmcache_kit.plugins import PluginRegistry, RegisteredPlugin
from lmcache_kit.scenario.fault_plan import FAULT_KINDS
from lmcache_kit.scenario.model import Scenario

__all__ = ["scenario_schema"]

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
# Which plugin kind the `kind` of a model type names. Those with True may be given as the bare name too.
_PLUGIN_KIND = {
    "LauncherSpec": ("launcher", True),
    "EngineSpec": ("engine", True),
    "TierSpec": ("storage", True),
    "PlacementSpec": ("placement", True),
    "TransportSpec": ("transport", True),
    "ReporterSpec": ("reporter", True),
}


def scenario_schema(plugins: PluginRegistry) -> dict[str, Any]:
    """The schema of a scenario file as :func:`lmcache_kit.scenario.load_scenario` takes it."""
    _, components = msgspec.json.schema_components([Scenario], ref_template="#/$defs/{name}")
    options = _option_schemas(plugins)
    for model, (kind, short) in _PLUGIN_KIND.items():
        components[model] = _with_plugins(components[model], kind, plugins.names(kind), short=short)
    for engine in _objects(components["EngineSpec"]):
        engine["allOf"] += [_without_args(entry.record.name) for entry in plugins.all("engine") if _takes_none(entry)]
    for tier in _objects(components["TierSpec"]):
        tier["properties"]["eviction"] = {**tier["properties"]["eviction"], "enum": plugins.names("eviction")}
        default = tier["properties"]["eviction"]["default"]
        tier["allOf"] += _choices("eviction", "eviction", "eviction_options", plugins.names("eviction"), default)
    components["WorkloadSpec"] = _workload(components["WorkloadSpec"], plugins)
    components["FaultSpec"]["oneOf"] = [{"required": [kind]} for kind in FAULT_KINDS]
    for model in ("InstanceDefaults", "InstanceSpec"):
        components[model]["properties"]["methods"] |= _by_name("compression", plugins)
    instance = components["InstanceSpec"]
    instance["required"] = [name for name in instance["required"] if name == "id"]
    schema: dict[str, Any] = components.pop("Scenario")
    return {"$schema": _DRAFT, "$id": "lmcache-kit-scenario", **schema, "$defs": {**components, **options}}


def _option_schemas(plugins: PluginRegistry) -> dict[str, Any]:
    """One definition per plugin, called ``options.KIND.NAME``; types that it refers to are inlined below it."""
    found: dict[str, Any] = {}
    for kind in PLUGIN_KINDS:
        for entry in plugins.all(kind):
            found[_options_name(kind, entry.record.name)] = _inlined(entry.record.options)
    return found


def _inlined(options: type[msgspec.Struct]) -> dict[str, Any]:
    (top,), components = msgspec.json.schema_components([options])

    def resolve(value: Any, seen: tuple[str, ...]) -> Any:
        if isinstance(value, dict):
            reference = value.get("$ref")
            if isinstance(reference, str):
                name = reference.rpartition("/")[2]
                return {} if name in seen else resolve(components[name], (*seen, name))
            return {key: resolve(below, seen) for key, below in value.items()}
        if isinstance(value, list):
            return [resolve(below, seen) for below in value]
        return value

    resolved: dict[str, Any] = resolve(top, ())
    return resolved


def _options_name(kind: str, name: str) -> str:
    return f"options.{kind}.{name}"


def _with_plugins(model: dict[str, Any], kind: str, names: list[str], *, short: bool) -> dict[str, Any]:
    model["properties"]["kind"] = {**model["properties"]["kind"], "enum": names}
    model["allOf"] = _choices(kind, "kind", "options", names)
    return {"anyOf": [{"enum": names}, model]} if short else model


def _choices(kind: str, key: str, options: str, names: list[str], default: str | None = None) -> list[dict[str, Any]]:
    """Where ``key`` names a plugin of ``kind``, ``options`` are that plugin's; without ``key``, the default's."""
    return [
        {
            "if": {"properties": {key: {"const": name}}, **({} if name == default else {"required": [key]})},
            "then": {"properties": {options: {"$ref": f"#/$defs/{_options_name(kind, name)}"}}},
        }
        for name in names
    ]


def _takes_none(entry: RegisteredPlugin) -> bool:
    return isinstance(entry.record, EnginePlugin) and entry.record.server is None


def _without_args(name: str) -> dict[str, Any]:
    """Arguments are for engines that are servers of their own."""
    return {
        "if": {"properties": {"kind": {"const": name}}, "required": ["kind"]},
        "then": {"properties": {"args": {"maxItems": 0}}},
    }


def _by_name(kind: str, plugins: PluginRegistry) -> dict[str, Any]:
    """A mapping from plugins of ``kind`` to their options."""
    references = {name: {"$ref": f"#/$defs/{_options_name(kind, name)}"} for name in plugins.names(kind)}
    return {"properties": references, "additionalProperties": False}


def _objects(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in schema.get("anyOf", [schema]) if "properties" in each]


def _workload(model: dict[str, Any], plugins: PluginRegistry) -> dict[str, Any]:
    """A workload's options stand beside its name and kind, so each kind of workload is an object of its own."""
    variants = []
    for entry in plugins.all("workload"):
        options = _inlined(entry.record.options)
        for trace in _traces(options):
            reader = trace["properties"]["reader"]
            reader["enum"] = plugins.names("trace")
            trace["allOf"] = _choices("trace", "reader", "options", reader["enum"], reader["default"])
        variants.append(
            {
                "type": "object",
                "title": entry.record.name,
                "description": entry.record.summary,
                "properties": {
                    "name": model["properties"]["name"],
                    "kind": {"const": entry.record.name},
                    **options.get("properties", {}),
                },
                "required": ["name", "kind", *options.get("required", [])],
                "additionalProperties": False,
            }
        )
    return {"anyOf": variants}


def _traces(options: dict[str, Any]) -> list[dict[str, Any]]:
    """Wherever a workload's options name a trace reader: the builtin type of it, which other workloads may use too."""
    return [
        each
        for below in options.get("properties", {}).values()
        for each in _objects(below)
        if each.get("title") == "TraceOptions"
    ]
