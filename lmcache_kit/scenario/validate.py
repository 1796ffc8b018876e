"""Checks of a scenario against the installed plugins, done before anything boots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lmcache_kit.contracts.records import (
    PLUGIN_KINDS,
    CompressionPlugin,
    EnginePlugin,
    EvictionPlugin,
    LauncherPlugin,
    Options,
    PlacementPlugin,
    Plugin,
    ReporterPlugin,
    StoragePlugin,
    TransportPlugin,
    WorkloadPlugin,
)
from lmcache_kit.contracts.workload import Workload
from lmcache_kit.errors import ConfigError, LMCacheKitError, UnknownNameError
from lmcache_kit.faults.schedule import FaultPlan
from lmcache_kit.kv.hashing import HASH_ALGORITHMS, HashSpec
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.scenario.fault_plan import make_fault_plan
from lmcache_kit.scenario.model import InstanceSpec, Scenario, TierSpec
from lmcache_kit.units import parse_bandwidth, parse_duration, parse_size

__all__ = [
    "fault_plan",
    "is_server",
    "location_of",
    "make_workloads",
    "plugins_used",
    "startup_timeout",
    "validate",
]

STARTUP_SECONDS = 120.0
SERVER_STARTUP_SECONDS = 600.0
"""A server of its own may read gigabytes and compile before it answers."""


def validate(scenario: Scenario, plugins: PluginRegistry) -> list[Workload]:
    """Check every plugin name, option, unit and cross-reference; the workloads, made and in order.

    Raises ConfigError with the path of the first thing that is wrong.
    """
    _plugin(plugins, LauncherPlugin, scenario.launcher.kind, scenario.launcher.options, "launcher")
    for index, reporter in enumerate(scenario.reporters):
        _plugin(plugins, ReporterPlugin, reporter.kind, reporter.options, f"reporters.{index}")
    for instance in scenario.instances:
        _check_instance(instance, plugins, f"instances.{instance.id}")
        _check_clock(instance, plugins, scenario.clock)
    _check_links(scenario)
    fault_plan(scenario, plugins)
    return make_workloads(scenario, plugins)


def fault_plan(scenario: Scenario, plugins: PluginRegistry) -> FaultPlan:
    """The scenario's faults as either clock carries them out. Raises ConfigError with the path of what is wrong."""
    locations = {each.id: [location_of(tier, plugins) for tier in each.tiers] for each in scenario.instances}
    plan = make_fault_plan(scenario, plugins, locations)
    servers = {each.id for each in scenario.instances if is_server(each, plugins)}
    for fault in plan.faults:
        concerned = sorted(servers.intersection(fault.target))
        if concerned and fault.kind not in ("kill", "restart"):
            raise ConfigError(
                f"faults.{fault.position}.{fault.kind}: the engine of instance {concerned[0]!r} is a server of its "
                "own, which cannot be asked for it",
                hint="it can be killed and restarted",
            )
    return plan


def is_server(instance: InstanceSpec, plugins: PluginRegistry) -> bool:
    """Whether the engine of a valid instance is a server of its own."""
    assert instance.engine is not None, "checked by validate"
    return plugins.get(EnginePlugin, instance.engine.kind).server is not None


def startup_timeout(scenario: Scenario, plugins: PluginRegistry) -> float:
    """Seconds until every process must be ready."""
    if scenario.startup_timeout is not None:
        return scenario.startup_timeout
    servers = any(is_server(instance, plugins) for instance in scenario.instances)
    return SERVER_STARTUP_SECONDS if servers else STARTUP_SECONDS


def location_of(tier: TierSpec, plugins: PluginRegistry) -> str:
    """The tier's location name: its own, or its plugin's."""
    return tier.location or plugins.get(StoragePlugin, tier.kind).location


def make_workloads(scenario: Scenario, plugins: PluginRegistry) -> list[Workload]:
    """Every workload of the scenario, its options and references checked. Raises ConfigError."""
    made: list[Workload] = []
    earlier: list[str] = []
    for spec in scenario.workloads:
        path = f"workloads.{spec.name}"
        record, options = _plugin(plugins, WorkloadPlugin, spec.kind, spec.options, path)
        if scenario.clock not in record.clocks:
            raise ConfigError(f"{path}: workload {spec.kind!r} does not run under the {scenario.clock} clock")
        try:
            workload = record.factory(options)
        except LMCacheKitError as error:
            raise ConfigError(f"{path}: {error.message}", hint=error.hint) from None
        for need in workload.needs():
            if need not in earlier:
                unknown = UnknownNameError("earlier workload", need, earlier)
                raise ConfigError(f"{path}: {unknown.message}", hint=unknown.hint)
        _check_references(workload, scenario, plugins, path)
        for kind, name, values in workload.configures():
            _plugin(plugins, PLUGIN_KINDS[kind], name, values, path)
        made.append(workload)
        earlier.append(spec.name)
    return made


def plugins_used(scenario: Scenario, workloads: Iterable[Workload] = ()) -> list[tuple[str, str]]:
    """``(kind, name)`` of each plugin that the scenario names, once, sorted.

    ``workloads`` are those of :func:`make_workloads`; they know which of their options name a plugin.
    """
    used = {("launcher", scenario.launcher.kind)}
    used |= {("reporter", reporter.kind) for reporter in scenario.reporters}
    used |= {("workload", workload.kind) for workload in scenario.workloads}
    for instance in scenario.instances:
        used |= {("placement", instance.placement.kind), ("transport", instance.transport.kind)}
        used |= {("storage", tier.kind) for tier in instance.tiers}
        used |= {("eviction", tier.eviction) for tier in instance.tiers}
        used |= {("compression", name) for name in instance.methods}
        used |= {("compression", tier.method) for tier in instance.tiers if tier.method is not None}
        if instance.engine is not None:
            used.add(("engine", instance.engine.kind))
    for made in workloads:
        used |= {(what, name) for what, name in made.references() if what in PLUGIN_KINDS}
        used |= {(what, name) for what, name, _ in made.configures()}
    return sorted(used)


def _plugin(
    plugins: PluginRegistry, kind: type[Plugin], name: str, options: Mapping[str, Any], path: str
) -> tuple[Any, Options]:
    try:
        record = plugins.get(kind, name)
        return record, plugins.options(record, options)
    except LMCacheKitError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from None


def _check_instance(instance: InstanceSpec, plugins: PluginRegistry, path: str) -> None:
    if instance.engine is None:
        raise ConfigError(
            f"{path} has no engine", hint=f"e.g. engine: {{kind: {(plugins.names('engine') or ['synthetic'])[0]}}}"
        )
    engine, _ = _plugin(plugins, EnginePlugin, instance.engine.kind, instance.engine.options, f"{path}.engine")
    if instance.engine.args and engine.server is None:
        raise ConfigError(
            f"{path}.engine.args: engine {engine.name!r} takes no arguments",
            hint="they are for engines that are servers of their own, such as vllm; others have options",
        )
    try:
        HashSpec(chunk_size=instance.chunk_size, algorithm=instance.hash_algorithm)
    except UnknownNameError:
        error = UnknownNameError("hash algorithm", instance.hash_algorithm, HASH_ALGORITHMS)
        raise ConfigError(f"{path}.hash_algorithm: {error.message}", hint=error.hint) from None
    _plugin(plugins, PlacementPlugin, instance.placement.kind, instance.placement.options, f"{path}.placement")
    transport, _ = _plugin(
        plugins, TransportPlugin, instance.transport.kind, instance.transport.options, f"{path}.transport"
    )
    if "same_process" in transport.capabilities:
        reaching = [
            entry.record.name for entry in plugins.all("transport") if "same_process" not in entry.record.capabilities
        ]
        raise ConfigError(
            f"{path}.transport: {transport.name!r} stays within one process, and each instance is a process of its own",
            hint=f"use one of {', '.join(reaching)}",
        )
    _check_link(instance.transport.bandwidth, instance.transport.latency, f"{path}.transport")
    for name, options in instance.methods.items():
        _plugin(plugins, CompressionPlugin, name, options, f"{path}.methods.{name}")
    locations: set[str] = set()
    for index, tier in enumerate(instance.tiers):
        below = f"{path}.tiers.{index}"
        _plugin(plugins, StoragePlugin, tier.kind, tier.options, below)
        _plugin(plugins, EvictionPlugin, tier.eviction, tier.eviction_options, f"{below}.eviction")
        if tier.method is not None:
            _plugin(plugins, CompressionPlugin, tier.method, {}, f"{below}.method")
        if tier.capacity is not None:
            _with_path(f"{below}.capacity", parse_size, tier.capacity)
        location = location_of(tier, plugins)
        if location in locations:
            raise ConfigError(f"{below}: location {location!r} is already a tier of this instance", hint="name another")
        locations.add(location)


def _check_clock(instance: InstanceSpec, plugins: PluginRegistry, clock: str) -> None:
    assert instance.engine is not None, "checked before"
    if clock != "wall" and is_server(instance, plugins):
        raise ConfigError(
            f"instances.{instance.id}.engine: {instance.engine.kind!r} is a server of its own, which runs on the wall "
            f"clock only, not on the {clock} one",
            hint="simulate it with another engine of the same KV layout, and costs of your own",
        )


def _check_links(scenario: Scenario) -> None:
    known = [instance.id for instance in scenario.instances]
    for index, link in enumerate(scenario.links):
        for name in link.between:
            if name not in known:
                error = UnknownNameError("instance", name, known)
                raise ConfigError(f"links.{index}.between: {error.message}", hint=error.hint)
        if link.between[0] == link.between[1]:
            raise ConfigError(f"links.{index}.between names {link.between[0]!r} twice")
        _check_link(link.bandwidth, link.latency, f"links.{index}")


def _check_link(bandwidth: str | None, latency: str | float | None, path: str) -> None:
    if bandwidth is not None:
        _with_path(f"{path}.bandwidth", parse_bandwidth, bandwidth)
    if latency is not None:
        _with_path(f"{path}.latency", parse_duration, latency)


def _with_path(path: str, parse: Any, value: Any) -> None:
    try:
        parse(value)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from None


def _check_references(workload: Workload, scenario: Scenario, plugins: PluginRegistry, path: str) -> None:
    """What a workload's options name must exist: instances, locations and plugins."""
    for what, name in workload.references():
        if what == "instance":
            known = [instance.id for instance in scenario.instances]
        elif what == "location":
            known = sorted({location_of(tier, plugins) for each in scenario.instances for tier in each.tiers})
        else:
            try:
                plugins.get(PLUGIN_KINDS[what], name)
            except UnknownNameError as unknown:  # its hint knows what to install, and what is broken
                raise ConfigError(f"{path}: unknown {what} {name!r}", hint=unknown.hint) from None
            continue
        if name not in known:
            error = UnknownNameError(what, name, known)
            raise ConfigError(f"{path}: {error.message}", hint=error.hint)
