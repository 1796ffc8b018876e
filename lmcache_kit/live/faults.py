"""Faults on the wall clock: processes are killed and started for real, the rest is asked of the instances.

An instance takes faults only from whoever holds the token that it was started with (docs/reference/faults.md). The
runner makes one for each run and gives it to the instances of a scenario that has faults, and to no others.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec

from lmcache_kit.client import InstanceClient
from lmcache_kit.faults.schedule import CONTROLLER
from lmcache_kit.instance.faults import FAULTS_VARIABLE, TOKEN_VARIABLE, InstanceFaults, LinkFault
from lmcache_kit.live.cache_events import set_aside
from lmcache_kit.live.fleet import Fleet
from lmcache_kit.live.fleet_plan import FleetPlan
from lmcache_kit.live.supervision import Supervisor

__all__ = ["WallFaults", "new_token", "with_token"]


def new_token() -> str:
    """A token for one run."""
    return secrets.token_hex(16)


def with_token(plan: FleetPlan, token: str) -> FleetPlan:
    """The plan of a fleet whose instances take faults from the holder of ``token``."""
    instances = tuple(
        planned
        if planned.server
        else replace(planned, spec=replace(planned.spec, env={**planned.spec.env, TOKEN_VARIABLE: token}))
        for planned in plan.instances
    )
    return replace(plan, instances=instances)


class WallFaults:
    """A :class:`~lmcache_kit.faults.FaultTarget` of real processes.

    Args:
        plan: what was started, of :func:`with_token`.
        token: the token.
        supervisor: runs the processes.
        fleet: the running fleet.
        event_logs: the file of each instance's cache events.
        timeout: seconds that a restarted process may take until it serves.
    """

    def __init__(
        self,
        plan: FleetPlan,
        token: str,
        supervisor: Supervisor,
        fleet: Fleet,
        event_logs: Mapping[str, Path],
        *,
        timeout: float,
    ) -> None:
        self._plan = plan
        self._planned = {planned.instance_id: planned for planned in plan.instances}
        self._clients = {
            name: _FaultClient(planned.url, token=token)
            for name, planned in self._planned.items()
            if not planned.server
        }
        self._supervisor = supervisor
        self._fleet = fleet
        self._event_logs = event_logs
        self._timeout = timeout
        self._down: set[str] = set()
        self._slow: dict[frozenset[str], tuple[float | None, float | None]] = {}
        self._cut: set[frozenset[str]] = set()
        self._full: set[tuple[str, str]] = set()

    async def close(self) -> None:
        """Close the connections; faults in force stay as they are."""
        for client in self._clients.values():
            await client.close()

    async def kill(self, target: str) -> None:
        self._down.add(target)
        spec = self._plan.controller if target == CONTROLLER else self._planned[target].spec
        await self._supervisor.kill(spec.name)

    async def restart(self, target: str) -> None:
        if target == CONTROLLER:
            await self._supervisor.restart(self._plan.controller, ports=self._plan.controller_ports)
            await self._fleet.controller_back(self._reaching_controller, timeout=self._timeout)
        else:
            planned = self._planned[target]
            set_aside(self._event_logs[target])
            spec = planned.spec
            if not planned.server:
                # What is in force must hold from its first moment on, before it can be asked over HTTP.
                faults = msgspec.json.encode(self._faults(target)).decode()
                spec = replace(spec, env={**spec.env, FAULTS_VARIABLE: faults})
            before = await self._fleet.registered_at(target) if planned.server else None
            await self._supervisor.restart(spec, ports=planned.ports)
            await self._fleet.instance_back(
                target, joins=partial(self._joins, target), before=before, timeout=self._timeout
            )
        self._down.discard(target)
        if target != CONTROLLER:
            await self._tell(target)  # what changed while it started

    async def set_link(self, a: str, b: str, bandwidth: float | None, latency: float | None) -> None:
        pair = frozenset((a, b))
        if bandwidth is None and latency is None:
            self._slow.pop(pair, None)
        else:
            self._slow[pair] = (bandwidth, latency)
        await self._tell(a, b)

    async def cut(self, a: str, b: str) -> None:
        self._cut.add(frozenset((a, b)))
        await self._tell(a, b)

    async def mend(self, a: str, b: str) -> None:
        self._cut.discard(frozenset((a, b)))
        await self._tell(a, b)

    async def fill_tier(self, instance: str, location: str) -> None:
        self._full.add((instance, location))
        await self._tell(instance)

    async def empty_tier(self, instance: str, location: str) -> None:
        self._full.discard((instance, location))
        await self._tell(instance)

    def _joins(self, instance: str) -> bool:
        return CONTROLLER not in self._down and frozenset((instance, CONTROLLER)) not in self._cut

    def _reaching_controller(self) -> set[str]:
        return {
            name for name in self._planned if name not in self._down and frozenset((name, CONTROLLER)) not in self._cut
        }

    def _faults(self, instance: str) -> InstanceFaults:
        """All faults in force at an instance."""
        links = {}
        for name, planned in self._planned.items():
            pair = frozenset((instance, name))
            if name != instance and (pair in self._slow or pair in self._cut):
                bandwidth, latency = self._slow.get(pair, (None, None))
                links[planned.peer_url] = LinkFault(bandwidth, latency, pair in self._cut)
        return InstanceFaults(
            links=links,
            controller_cut=frozenset((instance, CONTROLLER)) in self._cut,
            full_tiers=[location for name, location in sorted(self._full) if name == instance],
        )

    async def _tell(self, *instances: str) -> None:
        """Have instances take the faults that are in force. One that is down is told when it starts."""
        for name in instances:
            if name in self._clients and name not in self._down:
                await self._clients[name].put_faults(self._faults(name))


class _FaultClient(InstanceClient):
    async def put_faults(self, faults: InstanceFaults) -> None:
        await self._call("PUT", "/faults", faults)
