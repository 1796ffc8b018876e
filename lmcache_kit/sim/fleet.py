"""A scenario's fleet in virtual time: instances made from their configurations, a controller, links."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from lmcache_kit.contracts.engine import DeclaresCosts, Engine
from lmcache_kit.contracts.records import CompressionPlugin, EnginePlugin, EvictionPlugin, StoragePlugin
from lmcache_kit.contracts.workload import InstanceHandle
from lmcache_kit.errors import ConfigError
from lmcache_kit.instance.build import build_placement
from lmcache_kit.instance.config.loading import instance_config
from lmcache_kit.instance.config.model import InstanceConfig
from lmcache_kit.instance.config.model import TierSpec as TierConfig
from lmcache_kit.instance.core.events import CacheEvent
from lmcache_kit.instance.core.tiers import TierState
from lmcache_kit.kv.hashing import ChunkHasher
from lmcache_kit.live.fleet_plan import instance_settings
from lmcache_kit.live.folder import OutputFolder
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.scenario import Scenario
from lmcache_kit.scenario.model import InstanceSpec
from lmcache_kit.sim.clients import SimControllerClient, SimInstanceClient
from lmcache_kit.sim.control import ControlledSimStore
from lmcache_kit.sim.controller import SimController
from lmcache_kit.sim.costs import Costs
from lmcache_kit.sim.devices import TierDevice
from lmcache_kit.sim.engine import make_engine
from lmcache_kit.sim.instance import SimInstance
from lmcache_kit.sim.loop import VirtualClock, VirtualLoop
from lmcache_kit.sim.member import Member
from lmcache_kit.sim.network import CONTROLLER, Network
from lmcache_kit.sim.processor import Processor
from lmcache_kit.sim.store import SimStore, SimTier
from lmcache_kit.units import parse_bandwidth, parse_duration

__all__ = ["SimFleet"]

OnEvent = Callable[[str, CacheEvent], None]


class SimFleet:
    """See the module. It is what faults are done to, too.

    Args:
        scenario: the fleet; it has been validated.
        plugins: the installed plugins.
        costs: what things cost.
        loop: virtual time.
        on_event: told every decision of every instance's cache, or None.
        folder: where instances would keep files; nothing is written.

    Raises ConfigError for what cannot be simulated, or has no costs.
    """

    def __init__(
        self,
        scenario: Scenario,
        plugins: PluginRegistry,
        costs: Costs,
        loop: VirtualLoop,
        *,
        on_event: OnEvent | None,
        folder: OutputFolder,
    ) -> None:
        self._scenario = scenario
        self._plugins = plugins
        self._costs = costs
        self._loop = loop
        self._on_event = on_event
        self._folder = folder
        self._urls = {spec.id: f"sim://{spec.id}" for spec in scenario.instances}
        self._engines: dict[bytes, Engine] = {}
        self._shared: dict[bytes, dict[str, int]] = {}
        self._processor = None if costs.cores is None else Processor(loop, costs.cores)
        self.network = Network(loop)
        self.members: dict[str, Member] = {}
        self.simulated_controller = SimController(loop, self.network, self.members)
        self.controller = SimControllerClient(
            self.simulated_controller.handlers, lookup_seconds=costs.lookup_seconds, call_seconds=costs.call_seconds
        )
        for spec in scenario.instances:
            self.members[spec.id] = self._member(spec)
        self._shape_links()
        self.instances: dict[str, InstanceHandle] = {
            name: self._handle(member) for name, member in self.members.items()
        }
        for member in self.members.values():
            self.simulated_controller.join(member)

    def close(self) -> None:
        """Free the engines that were made for their tokenizers and layouts."""
        for engine in self._engines.values():
            engine.close()

    def tier_traffic(self) -> list[dict[str, object]]:
        """What went through each tier, and what it held at the end."""
        return [
            {
                "instance": name,
                "location": tier.location,
                "bytes_read": tier.device.reads.bytes,
                "bytes_written": tier.device.writes.bytes,
                "read_seconds": tier.device.reads.busy_seconds,
                "write_seconds": tier.device.writes.busy_seconds,
                "held_bytes": tier.state.held,
                "chunks": len(tier.state.entries),
            }
            for name, member in self.members.items()
            for tier in member.tiers
        ]

    # --- instances ---------------------------------------------------------------------------------------------------

    def _member(self, spec: InstanceSpec) -> Member:
        engine, name = self._engine(spec), spec.id
        assert spec.engine is not None, "checked by validate"
        declared = dict(engine.step_costs()) if isinstance(engine, DeclaresCosts) else None
        steps = self._costs.engine(spec.engine.kind, spec.engine.model, declared)
        config = self._config(spec)
        instance = SimInstance(
            self._loop,
            name,
            make_engine(self._loop, steps, config.hash_spec.chunk_size, self._processor),
            processor=self._processor,
            request_seconds=self._costs.request_seconds,
            request_token=self._costs.request_token,
            max_num_seqs=spec.max_num_seqs,
            report_seconds=self._costs.report_seconds,
            report=self.simulated_controller.reported,
        )
        tiers = [self._tier(tier, config) for tier in config.tiers]
        member = Member(spec, config, instance, tiers, engine, self._methods())
        self._furnish(member)
        return member

    def _furnish(self, member: Member) -> None:
        """Give an instance an empty store on its tiers."""
        config, instance = member.config, member.instance
        states = [
            TierState(index, tier.location, spec.capacity_bytes, self._policy(spec), VirtualClock(self._loop))
            for index, (tier, spec) in enumerate(zip(member.tiers, config.tiers, strict=True))
        ]
        for tier, state in zip(member.tiers, states, strict=True):
            state.full = tier.state.full  # a fault outlives a restart
            tier.state = state
            tier.device.forget()
        sink = None if self._on_event is None else partial(self._on_event, instance.instance_id)
        instance.store = SimStore(
            self._loop,
            model=member.engine.info.fingerprint,
            layout=member.engine.info.layout,
            hasher=ChunkHasher(config.hash_spec),
            tiers=member.tiers,
            placement=build_placement(config, member.tiers, self._plugins),  # type: ignore[arg-type]  # their locations
            costs=self._costs,
            processor=self._processor,
            on_change=instance.changed,
            on_event=sink,
            store_method=config.store_method,
            min_retrieve_tokens=config.min_retrieve_tokens,
        )
        known = partial(self._plugins.get, CompressionPlugin)
        member.control(ControlledSimStore(self._loop, instance.store, _PeersOf(self, instance.instance_id), known))

    def _engine(self, spec: InstanceSpec) -> Engine:
        """Its layout and tokenizer are needed, not its weights; engines that are alike are made once."""
        assert spec.engine is not None, "checked by validate"
        key = msgspec.json.encode(spec.engine)
        if key not in self._engines:
            record = self._plugins.get(EnginePlugin, spec.engine.kind)
            model = spec.engine.model or record.default_model or spec.engine.kind
            # Files that its options name are found from where an instance's process would run.
            with contextlib.chdir(self._scenario.base_dir or "."):
                self._engines[key] = record.make(self._plugins.options(record, spec.engine.options), model)
        return self._engines[key]

    def _config(self, spec: InstanceSpec) -> InstanceConfig:
        settings = instance_settings(spec, self._scenario, self._plugins, peers=self._urls, folder=self._folder)
        # From PYTHONHASHSEED otherwise: then keys, their lengths and the order of what a restart finds would depend on
        # the environment of whoever runs the simulation.
        settings["extra_config"]["lmcache_kit"].setdefault("none_hash", 0)
        config = instance_config(settings, env=spec.env)
        if config.save_decode_cache:
            raise ConfigError(
                f"instances.{spec.id}.config: save_decode_cache does not run under the virtual clock",
                hint="what an engine would write is not known there",
            )
        return config

    def _tier(self, spec: TierConfig, config: InstanceConfig) -> SimTier:
        record = self._plugins.get(StoragePlugin, spec.storage.kind)
        location = spec.location or record.location
        shared = None
        if "shared" in record.capabilities:
            # Stores with the same options are one store.
            shared = self._shared.setdefault(msgspec.json.encode([spec.storage.kind, spec.storage.options]), {})
        return SimTier(
            location=location,
            state=TierState(0, location, None, self._policy(spec), VirtualClock(self._loop)),
            device=TierDevice(self._costs.tier(location, record.location)),
            persistent="persistent" in record.capabilities and shared is None,
            readable=config.retrieve_locations is None or location in config.retrieve_locations,
            method=spec.method,
            shared=shared,
        )

    def _policy(self, spec: TierConfig) -> Any:
        record = self._plugins.get(EvictionPlugin, spec.eviction.kind)
        return record.factory(self._plugins.options(record, spec.eviction.options), spec.capacity_bytes)

    def _methods(self) -> list[str]:
        return self._plugins.names("compression")

    def _handle(self, member: Member) -> InstanceHandle:
        model = member.engine.info.model
        client = SimInstanceClient(member.instance, lambda: member.engine, model)
        return InstanceHandle(
            instance_id=member.instance.instance_id,
            url=client.url,
            client=client,  # type: ignore[arg-type]  # the same methods
            locations=tuple(tier.location for tier in member.tiers),
            model=model,
            chunk_size=member.config.hash_spec.chunk_size,
        )

    # --- links -------------------------------------------------------------------------------------------------------

    def _shape_links(self) -> None:
        names = list(self.members)
        defaults = {
            spec.id: spec.transport
            for spec in self._scenario.instances
            if spec.transport.bandwidth is not None or spec.transport.latency is not None
        }
        for name, transport in defaults.items():
            for other in names:
                if other != name:
                    self.network.shape(name, other, *_shape(transport.bandwidth, transport.latency))
        for link in self._scenario.links:
            self.network.shape(*link.between, *_shape(link.bandwidth, link.latency))
        self._shapes = self.network.shapes()

    # --- faults (lmcache_kit.faults.FaultTarget) ---------------------------------------------------------------------

    async def kill(self, target: str) -> None:
        if target == "controller":
            self.simulated_controller.kill()
        else:
            self.members[target].instance.kill()

    async def restart(self, target: str) -> None:
        await asyncio.sleep(self._costs.restart_seconds)
        if target == "controller":
            self.simulated_controller.restart()
            return
        member = self.members[target]
        kept = member.persistent_contents()
        self._furnish(member)
        member.instance.engine = member.instance.engine.fresh()
        member.instance.alive = True
        self.simulated_controller.join(member)
        member.recover(kept)

    async def set_link(self, a: str, b: str, bandwidth: float | None, latency: float | None) -> None:
        usual = self._shapes.get(frozenset((a, b)), (None, 0.0))
        self.network.shape(a, b, usual[0] if bandwidth is None else bandwidth, usual[1] if latency is None else latency)

    async def cut(self, a: str, b: str) -> None:
        self.network.cut(a, b)

    async def mend(self, a: str, b: str) -> None:
        self.network.cut(a, b, cut=False)
        for name in {a, b} & set(self.members) if CONTROLLER in (a, b) else ():
            self.simulated_controller.join(self.members[name])

    async def fill_tier(self, instance: str, location: str) -> None:
        self._tier_of(instance, location).state.full = True

    async def empty_tier(self, instance: str, location: str) -> None:
        self._tier_of(instance, location).state.full = False

    def _tier_of(self, instance: str, location: str) -> SimTier:
        return next(tier for tier in self.members[instance].tiers if tier.location == location)


class _PeersOf:
    """The other instances, as one of them reaches them."""

    def __init__(self, fleet: SimFleet, own: str) -> None:
        self._fleet = fleet
        self._own = own

    def store(self, url: str) -> ControlledSimStore:
        return self._fleet.members[_name(url)].reachable()

    async def carry(self, url: str, nbytes: int) -> None:
        self._fleet.members[_name(url)].reachable()
        await self._fleet.network.carry(self._own, _name(url), nbytes)

    def is_self(self, url: str) -> bool:
        return _name(url) == self._own


def _name(url: str) -> str:
    return url.removeprefix("sim://")


def _shape(bandwidth: str | None, latency: str | float | None) -> tuple[float | None, float]:
    return (
        None if bandwidth is None else parse_bandwidth(bandwidth),
        0.0 if latency is None else parse_duration(latency),
    )
