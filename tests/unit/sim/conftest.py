"""A small fleet in virtual time, with a record of what its caches decide that is checked as it grows."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from lmcache_kit.instance.core.events import CacheEvent
from lmcache_kit.live.folder import OutputFolder
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.scenario.loader import scenario_from_data
from lmcache_kit.sim.costs import load_costs
from lmcache_kit.sim.fleet import SimFleet
from lmcache_kit.sim.loop import VirtualLoop

CHUNK = 4
ENGINE = {"kind": "synthetic", "options": {"num_layers": 2, "num_kv_heads": 2, "head_dim": 32}}
TOKEN_BYTES = 2 * 2 * 2 * 32 * 2
"""Of KV: keys and values, layers, heads, head dimension, 16 bits."""

COSTS: dict[str, Any] = {
    "engines": {"synthetic": {"prefill_token": 0.01, "decode_base": 0.1}},
    "codecs": {
        "naive": {"ratio": 1, "encode_gbps": 1e6, "decode_gbps": 1e6},
        "fp8": {"ratio": 2, "encode_gbps": 1e6, "decode_gbps": 1e6},
    },
    "tiers": {
        "LocalCPUBackend": {"read_gbps": 1e6, "write_gbps": 1e6, "read_seconds": 0.001, "write_seconds": 0.001},
        "LocalDiskBackend": {"read_gbps": 1e6, "write_gbps": 1e6, "read_seconds": 0.01, "write_seconds": 0.5},
    },
    "report_seconds": 0.01,
    "restart_seconds": 2.0,
}


class Lab:
    """A fleet without workloads: tests talk to its clients."""

    def __init__(self, folder: Path, *, costs: dict[str, Any] | None = None, **scenario: Any) -> None:
        defaults = {
            "engine": ENGINE,
            "chunk_size": CHUNK,
            "save_unfull_chunk": False,
            "tiers": [{"kind": "memory"}, {"kind": "disk"}],
            **scenario.pop("instance_defaults", {}),
        }
        data = {
            "name": "lab",
            "clock": "virtual",
            "instances": [{"id": "a"}, {"id": "b"}],
            "workloads": [{"name": "unused", "kind": "traffic"}],
            "costs": {**COSTS, **(costs or {})},
            "instance_defaults": defaults,
            **scenario,
        }
        self.scenario = scenario_from_data(data)
        self.loop = VirtualLoop()
        self.events: list[tuple[str, CacheEvent]] = []
        self.contents: dict[tuple[str, str], set[str]] = {}
        self.fleet = SimFleet(
            self.scenario,
            PluginRegistry(allow=[]),
            load_costs(self.scenario.costs, folder),
            self.loop,
            on_event=self._event,
            folder=OutputFolder(folder / "out"),
        )
        self.controller = self.fleet.controller

    def _event(self, instance: str, event: CacheEvent) -> None:
        assert self.fleet.members[instance].instance.alive or event.cause == "recover", "the dead decide nothing"
        self.events.append((instance, event))

    def told(self, op: str, instance: str | None = None) -> list[CacheEvent]:
        return [event for name, event in self.events if event.op == op and instance in (None, name)]

    def client(self, name: str) -> Any:
        return self.fleet.instances[name].client

    def member(self, name: str) -> Any:
        return self.fleet.members[name]

    def held(self, name: str) -> dict[str, set[int]]:
        """Hashes of the chunks that an instance holds, by location."""
        member = self.fleet.members[name]
        return {
            tier.location: {entry.key.hash for entry in tier.state.entries.values() if entry.listed}
            for tier in member.tiers
        }

    def indexed(self, name: str) -> dict[str, set[int]]:
        """The same as the controller believes."""
        core = self.fleet.simulated_controller.core
        worker = core.registry.find(name, 0)
        if worker is None:
            return {tier.location: set() for tier in self.fleet.members[name].tiers}
        return {
            tier.location: set(core.contents.index.keys(worker.slots[tier.location]))
            if tier.location in worker.slots
            else set()
            for tier in self.fleet.members[name].tiers
        }

    def check_index(self, *names: str) -> None:
        for name in names or self.fleet.members:
            assert self.indexed(name) == self.held(name), name

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        try:
            return self.loop.run(work)
        finally:
            self.fleet.close()

    async def ask(self, name: str, tokens: Sequence[int], max_tokens: int = 1) -> Any:
        return await self.client(name).stream_complete(list(tokens), max_tokens=max_tokens)

    async def settle(self) -> None:
        """Until everything that was decided is reported."""
        await asyncio.sleep(1)


def prompt(symbols: str) -> list[int]:
    """One chunk per symbol; and a token, since the last one is always computed."""
    return [10 * ord(symbol) + place for symbol in symbols for place in range(CHUNK)] + [1]


@pytest.fixture
def lab(tmp_path: Path) -> Any:
    def make(**scenario: Any) -> Lab:
        return Lab(tmp_path, **scenario)

    make.prompt = prompt  # type: ignore[attr-defined]
    make.chunk_bytes = CHUNK * TOKEN_BYTES  # type: ignore[attr-defined]
    return make
