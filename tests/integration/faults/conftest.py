"""A fleet of real processes that faults are done to, one for all tests of a module."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from lmcache_kit.builtin.launchers.local import LocalLauncher
from lmcache_kit.client import ControllerClient, InstanceClient
from lmcache_kit.faults import FaultTarget
from lmcache_kit.live.faults import WallFaults, new_token, with_token
from lmcache_kit.live.fleet import Fleet
from lmcache_kit.live.fleet_plan import plan_fleet
from lmcache_kit.live.folder import OutputFolder
from lmcache_kit.live.supervision import Supervisor
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.scenario import parse_scenario, validate

SCENARIO = """
name: faulty
seed: 5
instance_defaults:
  engine: {kind: synthetic, options: {num_layers: 2, num_kv_heads: 2, head_dim: 64, decode_seconds: 0.002}}
  chunk_size: 64
  tiers: [{kind: memory, capacity: 32MiB}, {kind: disk, capacity: 64MiB}]
instances: [{id: a}, {id: b}]
workloads: [{name: serve, kind: completions, prompts: [x]}]
"""

DEADLINE = 30.0


@dataclass
class Running:
    """The fleet, and what a test needs of it."""

    faults: FaultTarget
    supervisor: Supervisor
    controller: ControllerClient
    clients: dict[str, InstanceClient]
    peer_urls: dict[str, str]
    urls: dict[str, str]
    token: str

    async def until(self, condition: Callable[[], Awaitable[Any]], what: str) -> Any:
        """What ``condition`` gives once it is true."""
        deadline = asyncio.get_running_loop().time() + DEADLINE
        while not (value := await condition()):
            assert asyncio.get_running_loop().time() < deadline, f"{what} did not come within {DEADLINE:g} s"
            await asyncio.sleep(0.02)
        return value

    async def held(self, tokens: list[int]) -> dict[str, Any]:
        """By instance, the locations and tokens that the controller knows of, once it has heard of everything."""
        answer = await self.controller.lookup(tokens)
        return {name: answer[name] for name in self.clients if name in answer}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    path: Path = tmp_path_factory.mktemp("faulty")
    plugins = PluginRegistry(allow=[])
    scenario = parse_scenario(SCENARIO)
    validate(scenario, plugins)
    folder = OutputFolder(path / "out")
    folder.prepare()
    token = new_token()
    plan = with_token(plan_fleet(scenario, plugins, folder), token)
    supervisor = Supervisor(LocalLauncher())
    made = Fleet(plan, supervisor, lambda line: None)
    logs = {planned.instance_id: folder.cache_events(planned.instance_id) for planned in plan.instances}
    faults = WallFaults(plan, token, supervisor, made, logs, timeout=DEADLINE)
    try:
        await made.boot(timeout=60.0)
        yield Running(
            faults,
            supervisor,
            made.controller,
            {name: handle.client for name, handle in made.instances.items()},
            {planned.instance_id: planned.peer_url for planned in plan.instances},
            {planned.instance_id: planned.url for planned in plan.instances},
            token,
        )
    finally:
        await faults.close()
        await made.close()
        await supervisor.stop()
