"""The faults of a scenario: checked, and made into the plan that both clocks carry out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lmcache_kit.contracts.records import LauncherPlugin
from lmcache_kit.errors import ConfigError, UnknownNameError
from lmcache_kit.faults.schedule import CONTROLLER, Fault, FaultKind, FaultPlan
from lmcache_kit.faults.state import FaultState
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.scenario.model import FaultSpec, Scenario
from lmcache_kit.units import parse_bandwidth, parse_duration

__all__ = ["FAULT_KINDS", "make_fault_plan"]

FAULT_KINDS: tuple[FaultKind, ...] = ("kill", "restart", "slow_link", "partition", "full_tier")
_LASTING = ("slow_link", "partition", "full_tier")


def make_fault_plan(scenario: Scenario, plugins: PluginRegistry, locations: Mapping[str, Collection[str]]) -> FaultPlan:
    """The plan of the scenario's faults; ``locations`` are the tiers of each instance.

    Raises ConfigError with the path of the first thing that is wrong: names, times, an action that contradicts those
    before it, or a launcher that cannot do it.
    """
    workloads = [workload.name for workload in scenario.workloads]
    if scenario.faults and CONTROLLER in locations:
        raise ConfigError(f"faults: {CONTROLLER!r} could be the instance of that name", hint="rename the instance")
    faults = []
    for position, spec in enumerate(scenario.faults):
        try:
            faults.append(_fault(position, spec, locations, workloads))
        except ConfigError as error:
            raise ConfigError(f"faults.{position}{error.message}", hint=error.hint) from None
    plan = FaultPlan(faults)
    _check_launcher(scenario, plugins, plan)
    state = FaultState()
    for after in (None, *workloads):
        for action in plan.actions(after):
            try:
                state.apply(action)
            except ConfigError as error:
                when = f"at {action.at:g} s" + (f" after {after}" if after else "")
                raise ConfigError(f"faults.{action.fault.position}: {error.message} {when}", hint=error.hint) from None
    return plan


def _fault(position: int, spec: FaultSpec, locations: Mapping[str, Collection[str]], workloads: list[str]) -> Fault:
    given = [kind for kind in FAULT_KINDS if getattr(spec, kind) is not None]
    if len(given) != 1:
        listed = ", ".join(FAULT_KINDS)
        raise ConfigError(f" names {' and '.join(given) or 'no fault'}", hint=f"name exactly one of {listed}")
    (kind,) = given
    if spec.after is not None:
        _known("workload", spec.after, workloads, ".after")
    at = _parsed(".at", parse_duration, spec.at)
    until = None
    if spec.duration is not None:
        if kind not in _LASTING:
            raise ConfigError(f".for: a {kind} has no duration", hint="a restart ends what a kill began")
        lasts = _parsed(".for", parse_duration, spec.duration)
        if not lasts > 0:
            raise ConfigError(".for: must be above 0 s")
        until = at + lasts

    instances = list(locations)
    target: tuple[str, ...]
    location = bandwidth = latency = None
    if kind in ("kill", "restart"):
        target = (getattr(spec, kind),)
        _known("instance", target[0], [*instances, CONTROLLER], f".{kind}")
    elif spec.full_tier is not None:
        target, location = (spec.full_tier.instance,), spec.full_tier.location
        _known("instance", target[0], instances, ".full_tier.instance")
        _known("location", location, locations[target[0]], ".full_tier.location")
    elif spec.partition is not None:
        target = _between(spec.partition.between, [*instances, CONTROLLER], ".partition.between")
    else:
        slow = spec.slow_link
        assert slow is not None
        if CONTROLLER in slow.between:
            raise ConfigError(
                ".slow_link.between: only links between instances carry chunks and can be slow",
                hint="an instance and the controller can be parted, with partition",
            )
        target = _between(slow.between, instances, ".slow_link.between")
        if slow.bandwidth is None and slow.latency is None:
            raise ConfigError(".slow_link: says nothing of how slow", hint="give bandwidth, latency or both")
        if slow.bandwidth is not None:
            bandwidth = _parsed(".slow_link.bandwidth", parse_bandwidth, slow.bandwidth)
        if slow.latency is not None:
            latency = _parsed(".slow_link.latency", parse_duration, slow.latency)
    return Fault(
        position=position,
        kind=kind,
        target=target,
        at=at,
        after=spec.after,
        until=until,
        location=location,
        bandwidth=bandwidth,
        latency=latency,
    )


def _between(between: tuple[str, str], known: Collection[str], path: str) -> tuple[str, ...]:
    for name in between:
        _known("instance", name, known, path)
    if between[0] == between[1]:
        raise ConfigError(f"{path}: names {between[0]!r} twice")
    return tuple(sorted(between))


def _known(what: str, name: str, known: Collection[str], path: str) -> None:
    if name not in known:
        error = UnknownNameError(what, name, known)
        raise ConfigError(f"{path}: {error.message}", hint=error.hint)


def _parsed(path: str, parse: Any, value: Any) -> float:
    try:
        return float(parse(value))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from None


def _check_launcher(scenario: Scenario, plugins: PluginRegistry, plan: FaultPlan) -> None:
    """Killing and restarting single processes is up to the launcher; the virtual clock launches none."""
    if scenario.clock != "wall":
        return
    record = plugins.get(LauncherPlugin, scenario.launcher.kind)
    for fault in plan.faults:
        if fault.kind in ("kill", "restart") and "faults" not in record.capabilities:
            raise ConfigError(
                f"faults.{fault.position}: launcher {record.name!r} cannot {fault.kind} a process during a run",
                hint="use launcher: local",
            )
