"""A fleet in virtual time whose instances do what a test says."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lmcache_kit.client import Completion
from lmcache_kit.contracts.records import WorkloadPlugin
from lmcache_kit.contracts.workload import InstanceHandle, WorkloadContext
from lmcache_kit.errors import UnavailableError
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.sim.loop import VirtualClock, VirtualLoop


@dataclass
class FakeInstance:
    """Answers after ``seconds``, the first token after half of it; away in the spans of ``away`` (from, to)."""

    name: str
    seconds: float = 1.0
    away: list[tuple[float, float]] = field(default_factory=list)
    cached: Callable[[int], int] = lambda tokens: 0
    chunk_size: int | None = 4
    error: BaseException | None = None
    calls: list[tuple[float, int, int, dict[str, Any]]] = field(default_factory=list)
    prompts: list[list[int]] = field(default_factory=list)
    health_calls: list[float] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0

    def _check(self) -> None:
        now = asyncio.get_running_loop().time()
        if any(begin <= now < end for begin, end in self.away):
            raise UnavailableError(f"{self.name} is away")

    async def health(self) -> dict[str, Any]:
        self.health_calls.append(asyncio.get_running_loop().time())
        self._check()
        return {} if self.chunk_size is None else {"chunk_size": self.chunk_size}

    async def stream_complete(
        self, prompt: Sequence[int], *, max_tokens: int, temperature: float, **more: Any
    ) -> Completion:
        loop = asyncio.get_running_loop()
        self.calls.append((loop.time(), len(prompt), max_tokens, more))
        self.prompts.append(list(prompt))
        self._check()
        if self.error is not None:
            raise self.error
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            end = loop.time() + self.seconds
            # Whoever is away when an answer is due has died over it.
            dies = [begin for begin, _ in self.away if loop.time() < begin < end]
            await asyncio.sleep((dies[0] if dies else end) - loop.time())
            self._check()
        finally:
            self.in_flight -= 1
        cached = self.cached(len(prompt))
        usage = {
            "prompt_tokens": len(prompt),
            "completion_tokens": max_tokens,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        facts = {
            "cached_tokens_by_location": {"LocalCPUBackend": cached} if cached else {},
            "stored_tokens": len(prompt) - cached,
            "loaded_bytes": cached,
            "loaded_kv_bytes": 2 * cached,
            "stored_bytes": len(prompt) - cached,
            "stored_kv_bytes": 2 * (len(prompt) - cached),
        }
        raw = {"usage": usage, "lmcache_kit": facts}
        return Completion(text="", ttft_seconds=self.seconds / 2, seconds=self.seconds, usage=usage, raw=raw)


@dataclass
class FakeController:
    prefix: Callable[[Sequence[int]], dict[str, int]] = lambda tokens: {}
    seconds: float = 0.0
    error: BaseException | None = None
    lookups: int = 0

    async def lookup(self, tokens: Sequence[int]) -> dict[str, Any]:
        self.lookups += 1
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return {"prefix": self.prefix(tokens)}


class Fleet:
    """Runs the workload on instances a, b, ..."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.instances = {name: FakeInstance(name) for name in "ab"}
        self.controller = FakeController()
        self.events: list[dict[str, Any]] = []
        self.seed = 1
        self.loop = VirtualLoop()

    def only(self, *names: str) -> None:
        self.instances = {name: FakeInstance(name) for name in names}

    def workload(self, **options: Any) -> Any:
        plugins = PluginRegistry(allow=[])
        record = plugins.get(WorkloadPlugin, "traffic")
        return record.factory(plugins.options(record, options))

    def run(self, **options: Any) -> dict[str, Any]:
        self.loop = VirtualLoop()
        context = WorkloadContext(
            name="play",
            controller=self.controller,  # type: ignore[arg-type]
            instances={
                name: InstanceHandle(
                    instance_id=name,
                    url="",
                    client=client,  # type: ignore[arg-type]
                    locations=("LocalCPUBackend",),
                    model="m",
                )
                for name, client in self.instances.items()
            },
            clock=VirtualClock(self.loop),
            rng=random.Random(f"{self.seed}/play"),
            base_dir=self.folder,
            earlier={},
            notes={},
            emit=lambda event, **facts: self.events.append({"event": event, **facts}),
            progress=lambda line: None,
        )
        result = self.loop.run(self.workload(**options).run(context))
        assert (result.name, result.kind) == ("play", "traffic")
        return dict(result.values)

    def trace(self, *rows: tuple[float, int, int, list[int]]) -> dict[str, Any]:
        """A trace of (seconds, prompt tokens, output tokens, ids of 512 tokens) as the option ``trace``."""
        lines = [
            f'{{"timestamp": {at * 1000}, "input_length": {tokens}, "output_length": {out}, "hash_ids": {ids}}}\n'
            for at, tokens, out, ids in rows
        ]
        (self.folder / "t.jsonl").write_text("".join(lines))
        return {"path": "t.jsonl"}


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)
