"""From a scenario to processes: ports, configuration files and command lines. Nothing is started here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from lmcache_kit.contracts.launcher import LaunchSpec
from lmcache_kit.contracts.records import EnginePlugin, TransportPlugin
from lmcache_kit.live.folder import OutputFolder
from lmcache_kit.live.ports import PortPicker
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.scenario import document
from lmcache_kit.scenario.model import InstanceSpec, Scenario
from lmcache_kit.scenario.validate import is_server, location_of

__all__ = ["FleetPlan", "PlannedInstance", "instance_settings", "plan_fleet"]

CONTROLLER_SOCKETS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedInstance:
    """One instance: how to start it and where it will be.

    Args:
        instance_id: its id.
        spec: its process.
        url: its HTTP address.
        peer_url: where other instances reach it.
        locations: its tiers, fastest first.
        ports: the scenario settings of its ports.
        chunk_size: tokens per chunk; None: not known.
        server: whether its engine is a server of its own, which answers as vLLM does and takes no faults.
    """

    instance_id: str
    spec: LaunchSpec
    url: str
    peer_url: str
    locations: tuple[str, ...]
    ports: str
    chunk_size: int | None = None
    server: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlan:
    """A controller and its instances."""

    controller: LaunchSpec
    controller_url: str
    controller_ports: str
    instances: tuple[PlannedInstance, ...]


@dataclass(frozen=True, slots=True)
class _Ports:
    http: int
    worker: int
    peer: int


def plan_fleet(scenario: Scenario, plugins: PluginRegistry, folder: OutputFolder) -> FleetPlan:
    """Choose ports and write each instance's configuration into the output folder.

    Raises ConflictError naming the setting of a port that is in use.
    """
    picker = PortPicker()
    host = scenario.controller.host
    # Ports that the scenario names come first, so that a free one is never chosen in their place.
    controller_port = scenario.controller.port and picker.pick(
        scenario.controller.port, host=host, setting="controller.port"
    )
    monitor_port = scenario.controller.monitor_port and picker.pick(
        scenario.controller.monitor_port, host=host, setting="controller.monitor_port", span=CONTROLLER_SOCKETS
    )
    fixed = {instance.id: _instance_ports(picker, instance, host, fixed=True) for instance in scenario.instances}
    controller_port = controller_port or picker.pick(0, host=host, setting="controller.port")
    monitor_port = monitor_port or picker.pick(0, host=host, setting="controller.monitor_port", span=CONTROLLER_SOCKETS)
    ports = {
        instance.id: _instance_ports(picker, instance, host, known=fixed[instance.id])
        for instance in scenario.instances
    }
    base_dir = Path(scenario.base_dir or ".").resolve()
    environment = {"PYTHONHASHSEED": str(scenario.seed)}
    peers = {
        instance.id: _peer_url(
            plugins.get(TransportPlugin, instance.transport.kind), instance.id, host, ports[instance.id]
        )
        for instance in scenario.instances
    }
    controller = LaunchSpec(
        name="the controller",
        argv=["controller", "--host", host, "--port", str(controller_port), "--monitor-port", str(monitor_port)],
        log=folder.logs / "controller.log",
        env=environment,
        cwd=base_dir,
    )
    planned = []
    for instance in scenario.instances:
        own = ports[instance.id]
        settings = instance_settings(
            instance,
            scenario,
            plugins,
            peers=peers,
            folder=folder,
            worker_port=own.worker,
            monitor_port=monitor_port,
        )
        config = folder.config / f"{instance.id}.yaml"
        config.write_text(document.dump(settings), encoding="utf-8")
        prefix = f"instances.{instance.id}"
        planned.append(
            PlannedInstance(
                instance_id=instance.id,
                spec=LaunchSpec(
                    name=f"instance {instance.id}",
                    argv=_serve(instance, plugins, config, host, own.http),
                    log=folder.logs / f"{instance.id}.log",
                    env={**environment, **instance.env},
                    cwd=base_dir,
                ),
                url=f"http://{_bracketed(host)}:{own.http}",
                peer_url=peers[instance.id],
                locations=tuple(location_of(tier, plugins) for tier in instance.tiers),
                ports=f"{prefix}.port, {prefix}.worker_port or {prefix}.peer_port",
                chunk_size=settings["chunk_size"],
                server=is_server(instance, plugins),
            )
        )
    return FleetPlan(
        controller=controller,
        controller_url=f"http://{_bracketed(host)}:{controller_port}",
        controller_ports="controller.port or controller.monitor_port",
        instances=tuple(planned),
    )


def _instance_ports(
    picker: PortPicker, instance: InstanceSpec, host: str, *, fixed: bool = False, known: _Ports | None = None
) -> _Ports:
    """The ports that the instance names (``fixed``), or those and free ones for the rest."""

    def port(wanted: int, name: str, before: int) -> int:
        if before or (fixed and not wanted):
            return before
        return picker.pick(wanted, host=host, setting=f"instances.{instance.id}.{name}")

    known = known or _Ports(0, 0, 0)
    return _Ports(
        port(instance.port, "port", known.http),
        port(instance.worker_port, "worker_port", known.worker),
        port(instance.peer_port, "peer_port", known.peer),
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _peer_url(transport: TransportPlugin, instance_id: str, host: str, ports: _Ports) -> str:
    """Where an instance listens for its peers: a port, or for transports of one host a name, unique by the port."""
    place = (
        f"{instance_id}-{ports.peer}" if "same_host" in transport.capabilities else f"{_bracketed(host)}:{ports.peer}"
    )
    return f"{transport.scheme}://{place}"


def _serve(instance: InstanceSpec, plugins: PluginRegistry, config: Path, host: str, port: int) -> list[str]:
    assert instance.engine is not None, "checked by validate"
    engine = instance.engine
    argv = ["serve", "--engine", engine.kind, "--host", host, "--port", str(port), "--config", str(config)]
    argv += ["--max-num-seqs", str(instance.max_num_seqs)]
    argv += ["--model", engine.model or plugins.get(EnginePlugin, engine.kind).default_model or engine.kind]
    for name, value in engine.options.items():
        # JSON is YAML too, which is what the option takes.
        argv += ["--engine-option", f"{name}={msgspec.json.encode(value).decode()}"]
    if engine.args:
        argv += ["--", *map(str, engine.args)]
    return argv


def instance_settings(
    instance: InstanceSpec,
    scenario: Scenario,
    plugins: PluginRegistry,
    *,
    peers: Mapping[str, str],
    folder: OutputFolder,
    worker_port: int = 0,
    monitor_port: int = 1,
) -> dict[str, Any]:
    """The instance's LMCache configuration, our own settings under ``extra_config.lmcache_kit``."""
    host = scenario.controller.host
    own: dict[str, Any] = {
        "tiers": [
            _without_empty(
                kind=tier.kind,
                location=location_of(tier, plugins),
                capacity=tier.capacity,
                eviction=tier.eviction,
                eviction_options=tier.eviction_options,
                method=tier.method,
                options=tier.options,
            )
            for tier in instance.tiers
        ],
        "placement": instance.placement.kind,
        "placement_options": instance.placement.options,
        "transport": _without_empty(
            kind=instance.transport.kind,
            address=peers[instance.id],
            bandwidth=instance.transport.bandwidth,
            latency=instance.transport.latency,
            options=instance.transport.options,
        ),
        "methods": instance.methods,
        "links": _links(instance, scenario, peers),
        "data_dir": str(folder.data / instance.id),
        "event_log": str(folder.cache_events(instance.id)),
        "advertise_host": host,
    }
    settings = dict(instance.config)
    extra = dict(settings.pop("extra_config", None) or {})
    # What a scenario writes under `config` takes precedence over what is made from its other settings.
    extra["lmcache_kit"] = {**{key: value for key, value in own.items() if value}, **(extra.get("lmcache_kit") or {})}
    return {
        "chunk_size": instance.chunk_size,
        "pre_caching_hash_algorithm": instance.hash_algorithm,
        "save_unfull_chunk": instance.save_unfull_chunk,
        "lmcache_instance_id": instance.id,
        "enable_controller": True,
        "controller_pull_url": f"{_bracketed(host)}:{monitor_port}",
        "controller_reply_url": f"{_bracketed(host)}:{monitor_port + 1}",
        "lmcache_worker_ports": worker_port,
        **settings,
        "extra_config": extra,
    }


def _links(instance: InstanceSpec, scenario: Scenario, peers: Mapping[str, str]) -> dict[str, Any]:
    shaped: dict[str, Any] = {}
    for link in scenario.links:
        if instance.id in link.between:
            other = link.between[1] if link.between[0] == instance.id else link.between[0]
            shaped[peers[other]] = _without_empty(bandwidth=link.bandwidth, latency=link.latency)
    return shaped


def _without_empty(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in (None, {})}
