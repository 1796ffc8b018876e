"""From YAML text to a checked :class:`Scenario`, and back.

Nothing here looks at plugins: :mod:`lmcache_kit.scenario.validate` does, once the shape is right.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from lmcache_kit.errors import ConfigError
from lmcache_kit.scenario import document
from lmcache_kit.scenario.expectations import parse_expectations
from lmcache_kit.scenario.model import InstanceDefaults, InstanceSpec, Scenario
from lmcache_kit.scenario.overrides import apply_overrides
from lmcache_kit.scenario.shape import check_keys, dotted, scenario_type

__all__ = ["dump_scenario", "load_scenario", "parse_scenario", "scenario_from_data", "scenario_to_data"]

_DEFAULTS = "instance_defaults"
_KIND_ONLY = ("launcher",)
_INSTANCE_KIND_ONLY = ("engine", "placement", "transport")


def load_scenario(path: Path, overrides: Iterable[str] = ()) -> Scenario:
    """The scenario in a file, its relative paths starting at the file's folder. Raises ConfigError."""
    data = document.read(path)
    scenario = scenario_from_data(data, overrides, source=str(path))
    if scenario.base_dir is None:
        scenario = msgspec.structs.replace(scenario, base_dir=str(path.resolve().parent))
    return scenario


def parse_scenario(text: str, overrides: Iterable[str] = (), *, source: str = "scenario") -> Scenario:
    """The scenario in a text. Raises ConfigError."""
    return scenario_from_data(document.parse(text, source=source), overrides, source=source)


def scenario_from_data(data: Any, overrides: Iterable[str] = (), *, source: str = "scenario") -> Scenario:
    """The scenario in plain data as YAML gives it; ``data`` may be changed. Raises ConfigError."""
    if not isinstance(data, dict):
        raise ConfigError(f"{source} is not a scenario: it must be a mapping", hint="see `lmcache-kit scenario list`")
    changes = list(overrides)
    apply_overrides(data, [change for change in changes if change.startswith(_DEFAULTS)])
    try:
        _spell_out(data)
        check_keys(data, scenario_type())
        _convert(data.get("instance_defaults") or {}, InstanceDefaults, "instance_defaults")
        _merge_defaults(data)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error.message}", hint=error.hint) from None
    # After the merge, so that a path may lead into what an instance has from the defaults.
    apply_overrides(data, [change for change in changes if not change.startswith(_DEFAULTS)])
    try:
        _spell_out(data)
        check_keys(data, scenario_type())
        _gather_workload_options(data)
        scenario = _expand(_convert(data, Scenario, ""))
        _check_names(scenario)
        parse_expectations(scenario.expect, [workload.name for workload in scenario.workloads])
    except ConfigError as error:
        raise ConfigError(f"{source}: {error.message}", hint=error.hint) from None
    return scenario


def scenario_to_data(scenario: Scenario) -> dict[str, Any]:
    """Plain data that loads to the same scenario."""
    data: dict[str, Any] = _fields(scenario)
    del data["instance_defaults"]
    data["instances"] = [{"id": instance.pop("id"), **instance} for instance in data["instances"]]
    data["workloads"] = [
        {"name": workload.name, "kind": workload.kind, **workload.options} for workload in scenario.workloads
    ]
    return data


def dump_scenario(scenario: Scenario) -> str:
    """YAML text of :func:`scenario_to_data`."""
    return document.dump(scenario_to_data(scenario))


def _spell_out(data: dict[str, Any]) -> None:
    """Replace ``launcher: local`` with ``launcher: {kind: local}``, and likewise in lists and below instances."""
    _spell_out_keys(data, _KIND_ONLY)
    _spell_out_list(data, "reporters")
    instances = data.get("instances")
    for instance in [data.get("instance_defaults"), *(instances if isinstance(instances, list) else [])]:
        if isinstance(instance, dict):
            _spell_out_keys(instance, _INSTANCE_KIND_ONLY)
            _spell_out_list(instance, "tiers")


def _spell_out_keys(data: dict[str, Any], keys: Iterable[str]) -> None:
    for key in keys:
        if isinstance(data.get(key), str):
            data[key] = {"kind": data[key]}


def _spell_out_list(data: dict[str, Any], key: str) -> None:
    if isinstance(data.get(key), list):
        data[key] = [{"kind": each} if isinstance(each, str) else each for each in data[key]]


def _merge_defaults(data: dict[str, Any]) -> None:
    """Write out what each instance has, the model's own defaults included, so that any of it can be overridden."""
    defaults = _merged(_fields(InstanceDefaults()), data.pop("instance_defaults", None) or {})
    instances = data.get("instances")
    if isinstance(instances, list):
        data["instances"] = [
            _merged(defaults, instance) if isinstance(instance, dict) else instance for instance in instances
        ]


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """A copy of ``above`` over ``below``, mapping by mapping; a mapping of another plugin kind replaces the whole."""
    result = copy.deepcopy(below)
    for key, value in above.items():
        under = below.get(key)
        if isinstance(value, dict) and isinstance(under, dict) and _same_kind(under, value):
            result[key] = _merged(under, value)
        else:
            result[key] = value
    return result


def _same_kind(under: dict[str, Any], above: dict[str, Any]) -> bool:
    return "kind" not in above or "kind" not in under or above["kind"] == under["kind"]


def _gather_workload_options(data: dict[str, Any]) -> None:
    workloads = data.get("workloads")
    if not isinstance(workloads, list):
        return
    gathered = []
    for workload in workloads:
        if isinstance(workload, dict):
            named = {key: workload[key] for key in ("name", "kind") if key in workload}
            options = {key: value for key, value in workload.items() if key not in named}
            gathered.append({**named, "options": options})
        else:
            gathered.append(workload)
    data["workloads"] = gathered


def _convert(data: Any, kind: type[Any], path: str) -> Any:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        below, problem = dotted(error)
        where = ".".join(part for part in (path, below) if part) or "the scenario"
        raise ConfigError(f"{where}: {problem[:1].lower()}{problem[1:]}") from None


def _expand(scenario: Scenario) -> Scenario:
    instances: list[InstanceSpec] = []
    for index, spec in enumerate(scenario.instances):
        if spec.count is None:
            instances.append(spec)
            continue
        if spec.count > 1 and (spec.port or spec.worker_port or spec.peer_port):
            raise ConfigError(f"instances.{index} has a fixed port and a count of {spec.count}", hint="leave it 0")
        instances += [
            msgspec.structs.replace(spec, id=f"{spec.id}-{number}", count=None) for number in range(spec.count)
        ]
    return msgspec.structs.replace(scenario, instances=instances)


def _check_names(scenario: Scenario) -> None:
    for what, names in (
        ("instance id", [instance.id for instance in scenario.instances]),
        ("workload name", [workload.name for workload in scenario.workloads]),
    ):
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{what} {name!r} is used {names.count(name)} times", hint="give each its own")


def _fields(value: Any) -> Any:
    """A model object as plain data without the fields that are None; mappings that users fill stay as they are."""
    if isinstance(value, msgspec.Struct):
        # Encoded names: a key of YAML may be a word that Python keeps for itself.
        fields = zip(value.__struct_encode_fields__, msgspec.structs.astuple(value), strict=True)
        return {key: _fields(below) for key, below in fields if below is not None}
    if isinstance(value, list | tuple):
        return [_fields(below) for below in value]
    return value
