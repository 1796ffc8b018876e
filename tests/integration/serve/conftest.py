"""An instance's HTTP interface in this process: the synthetic engine, and a store that is a plain dictionary."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from lmcache_kit.builtin.engines.options import SyntheticOptions
from lmcache_kit.builtin.engines.synthetic import SyntheticEngine
from lmcache_kit.clock import WallClock
from lmcache_kit.contracts.engine import Engine
from lmcache_kit.instance.generation import Generator
from lmcache_kit.instance.http import InstanceApp
from lmcache_kit.instance.metrics import InstanceMetrics
from lmcache_kit.kv import KVTensor

CHUNK = 64


class DictStore:
    """Chunks by the tokens up to their end; the meaning of ``KVStore`` in thirty lines, as an oracle."""

    def __init__(self, chunk_size: int) -> None:
        self.chunk_size = chunk_size
        self.chunks: dict[tuple[int, ...], KVTensor] = {}
        self.failure: Exception | None = None
        self.saves: list[int] = []

    async def load_prefix(self, tokens: Sequence[int], *, limit: int | None = None) -> Any:
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        parts: list[KVTensor] = []
        for start in range(0, len(tokens), self.chunk_size):
            chunk = self.chunks.get(tuple(tokens[: start + self.chunk_size]))
            if chunk is None:
                break
            parts.append(chunk)
        length = min(sum(part.num_tokens for part in parts), len(tokens) if limit is None else limit)
        kv = KVTensor.concat(parts).tokens(0, length) if length else None
        hits = [SimpleNamespace(location="LocalCPUBackend", num_tokens=length, stored_bytes=1, codec="naive")]
        return SimpleNamespace(kv=kv, num_tokens=length, hits=hits if length else [], seconds=0.0)

    async def save(self, tokens: Sequence[int], kv: KVTensor, *, start: int = 0) -> Any:
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        assert start % self.chunk_size == 0
        assert kv.num_tokens == len(tokens) - start
        stored = 0
        for begin in range(start, len(tokens), self.chunk_size):
            stop = min(begin + self.chunk_size, len(tokens))
            if tuple(tokens[:stop]) not in self.chunks:
                self.chunks[tuple(tokens[:stop])] = kv.tokens(begin - start, stop - start)
                stored += stop - begin
        self.saves.append(stored)
        return SimpleNamespace(num_tokens=stored, errors=[])

    def stats(self) -> dict[str, Any]:
        used = sum(chunk.nbytes for chunk in self.chunks.values())
        tier = {"used_bytes": used, "chunks": len(self.chunks), "hits": 3, "codecs": {}}
        return {"store": {"loads": 1, "tiers": {"LocalCPUBackend": tier}}, "worker": None, "peer": {"refused": 0}}


@dataclass
class Served:
    """An application and what it is made of."""

    http: httpx.AsyncClient
    app: InstanceApp
    generator: Generator
    engine: Engine
    store: DictStore
    metrics: InstanceMetrics
    extra: dict[str, Any] = field(default_factory=dict)


Serve = Callable[..., Any]


@asynccontextmanager
async def served(engine: Engine, *, max_body_bytes: int = 2**20, **options: Any) -> AsyncIterator[Served]:
    store, clock = DictStore(CHUNK), WallClock()
    metrics = InstanceMetrics(engine.info.model, "instance_1", store.stats)
    generator = Generator(engine, store, chunk_size=CHUNK, metrics=metrics, clock=clock, **options)
    app = InstanceApp(
        generator,
        metrics,
        clock=clock,
        served_models=[engine.info.model, "alias"],
        health=lambda: {"status": "ok"},
        max_body_bytes=max_body_bytes,
    )
    transport = httpx.ASGITransport(app=app.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://instance") as http:
        yield Served(http, app, generator, engine, store, metrics)
    await generator.close()


@pytest.fixture
def make_engine() -> Callable[..., SyntheticEngine]:
    """Makes a small synthetic engine."""

    def make(**options: Any) -> SyntheticEngine:
        small = {"num_layers": 2, "num_kv_heads": 1, "head_dim": 8, "max_model_len": 1024}
        return SyntheticEngine(SyntheticOptions(**{**small, **options}), "model-a")

    return make


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serves an engine until the end of the test: ``await serve(engine)`` gives a ``Served``."""
    async with AsyncExitStack() as stack:

        async def start(engine: Engine, **options: Any) -> Served:
            return await stack.enter_async_context(served(engine, **options))

        yield start


@pytest.fixture
def now() -> Callable[[], float]:
    return time.monotonic
