"""What belongs to one simulated instance, across its lives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lmcache_kit.contracts.engine import Engine
from lmcache_kit.errors import UnavailableError
from lmcache_kit.instance.config.model import InstanceConfig
from lmcache_kit.instance.core.tiers import Entry, EntryState
from lmcache_kit.instance.worker.change_queue import ChangeQueue
from lmcache_kit.instance.worker.control_handlers import ControlHandlers
from lmcache_kit.scenario.model import InstanceSpec
from lmcache_kit.sim.control import ControlledSimStore
from lmcache_kit.sim.instance import SimInstance
from lmcache_kit.sim.store import SimTier

__all__ = ["Member"]


@dataclass(slots=True)
class Member:
    """An instance with its configuration, tiers and controls; ``methods`` are the compression methods installed."""

    spec: InstanceSpec
    config: InstanceConfig
    instance: SimInstance
    tiers: list[SimTier]
    engine: Engine
    methods: list[str]
    controlled: ControlledSimStore = field(init=False)
    handlers: ControlHandlers = field(init=False)
    out_of_step: bool = False
    """Whether the controller missed a change."""

    def control(self, controlled: ControlledSimStore) -> None:
        """What the controller acts on from now on."""
        self.controlled = controlled
        self.handlers = ControlHandlers(controlled, health=self._health, pin_ttl=self.config.pin_ttl)

    async def _health(self) -> int:
        return 0

    def identity(self) -> dict[str, Any]:
        """The fields of registration and heartbeat."""
        spec, name = self.config.hash_spec, self.instance.instance_id
        return {
            "instance_id": name,
            "worker_id": 0,
            "ip": name,
            "port": 0,
            "peer_init_url": f"sim://{name}",
            "chunk_size": spec.chunk_size,
            "hash_algorithm": spec.algorithm,
            "none_hash": spec.none_hash,
            "save_unfull_chunk": spec.save_unfull_chunk,
            "methods": self.methods,
            "locations": [tier.location for tier in self.tiers],
            "model": self.engine.info.model,
        }

    def reachable(self) -> ControlledSimStore:
        """What peers reach. Raises UnavailableError while the instance is down."""
        if not self.instance.alive:
            raise UnavailableError(f"peer {self.instance.instance_id} cannot be reached")
        return self.controlled

    def announce_all(self) -> None:
        """Begin to count changes anew, with everything that is held as the first ones."""
        self.out_of_step = False
        changes = self.instance.changes = ChangeQueue(2**62)
        changes.release()
        for tier in self.tiers:
            for entry in tier.state.listed():
                changes.add("admit", tier.location, entry.key.hash)

    def persistent_contents(self) -> list[tuple[int, Entry]]:
        """What persistent tiers hold: tier and object, in the order in which a restart finds them."""
        return [
            (index, tier.state.entries[name])
            for index, tier in enumerate(self.tiers)
            if tier.persistent
            for name in sorted(tier.state.entries)
            if tier.state.entries[name].state is not EntryState.WRITING
        ]

    def recover(self, kept: list[tuple[int, Entry]]) -> None:
        """Take over what was kept, and announce it."""
        core = self.instance.store.core
        for tier, entry in kept:
            core.restore(tier, entry.key, nbytes=entry.nbytes, num_tokens=entry.num_tokens, codec=entry.codec)
        for tier in sorted({tier for tier, _ in kept}):
            core.announce_restored(tier)
