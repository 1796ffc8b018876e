"""An instance's HTTP interface in this process: engines made for tests, and a store that is a plain dictionary."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from lmcache_kit.builtin.engines.options import SyntheticOptions
from lmcache_kit.builtin.engines.synthetic import SyntheticEngine
from lmcache_kit.clock import WallClock
from lmcache_kit.contracts.engine import Engine, EngineInfo, EngineSequence, SamplingParams
from lmcache_kit.instance.http.app import InstanceApp
from lmcache_kit.instance.http.generation import Generator
from lmcache_kit.instance.http.metrics import InstanceMetrics
from lmcache_kit.kv import KVLayout, KVTensor

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
        return SimpleNamespace(num_tokens=stored, nbytes=stored, by_location={"LocalCPUBackend": stored}, errors=[])

    def stats(self) -> dict[str, Any]:
        used = sum(chunk.nbytes for chunk in self.chunks.values())
        tier = {"used_bytes": used, "chunks": len(self.chunks), "hits": 3, "codecs": {}, "available": True}
        store = {"loads": 1, "jobs": {"done": 2, "failed": 0}, "tiers": {"LocalCPUBackend": tier}}
        return {"store": store, "worker": None, "peer": {"refused": 0}, "links": {}}


class ScriptedEngine(Engine):
    """Says a given text, byte by byte, and notes every call; ``gate`` holds back whoever works while it is closed.

    A text of None stands for a broken engine: every step raises.
    """

    EOS = 257

    def __init__(self, *texts: bytes | None, eos_after: int | None = None) -> None:
        self.scripts = list(texts)
        self.eos_after = eos_after
        self.calls: list[tuple[str, int]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.open = 0
        self._info = EngineInfo(
            model="model-a",
            fingerprint="scripted",
            layout=KVLayout(1, 1, 1, "float32"),
            max_model_len=4096,
            eos_token_ids=frozenset({self.EOS}),
            vocab_size=258,
        )

    @property
    def info(self) -> EngineInfo:
        return self._info

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def detokenize(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(token for token in tokens if token < 256).decode(errors="replace")

    def token_text(self, token: int) -> str:
        return chr(token)

    def start(
        self, tokens: Sequence[int], *, prefix: KVTensor | None, prefill_block: int, sampling: SamplingParams
    ) -> EngineSequence:
        number = sum(1 for name, _ in self.calls if name == "start")
        script = self.scripts[min(number, len(self.scripts) - 1)]
        self.note("start", number)
        self.open += 1
        return ScriptedSequence(self, number, script)

    def note(self, name: str, number: int) -> None:
        self.calls.append((name, number))
        self.threads.add(threading.get_ident())
        self.entered.set()
        assert self.gate.wait(30)


class ScriptedSequence(EngineSequence):
    def __init__(self, engine: ScriptedEngine, number: int, script: bytes | None) -> None:
        self.engine, self.number, self.script, self.at, self.closed = engine, number, script, 0, False

    def prefill(self) -> int:
        self.engine.note("prefill", self.number)
        return self._next()

    def decode(self) -> int:
        self.engine.note("decode", self.number)
        return self._next()

    def kv(self, start: int, stop: int) -> KVTensor:
        return KVTensor.empty(self.engine.info.layout, stop - start)

    def close(self) -> None:
        self.engine.calls.append(("close", self.number))
        self.engine.open -= not self.closed
        self.closed = True

    def _next(self) -> int:
        assert not self.closed
        if self.script is None:
            raise RuntimeError("the engine is broken")
        self.at += 1
        if self.at - 1 == self.engine.eos_after:
            return self.engine.EOS
        return self.script[(self.at - 1) % len(self.script)]


@dataclass
class Served:
    """An application and what it is made of."""

    http: httpx.AsyncClient
    app: InstanceApp
    generator: Generator
    engine: Engine
    store: DictStore
    metrics: InstanceMetrics


Serve = Callable[..., Any]


async def healthy() -> dict[str, Any]:
    return {"status": "ok"}


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
        health=healthy,
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
def scripted() -> type[ScriptedEngine]:
    """Makes an engine that says given texts."""
    return ScriptedEngine


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serves an engine until the end of the test: ``await serve(engine)`` gives a ``Served``."""
    async with AsyncExitStack() as stack:

        async def start(engine: Engine, **options: Any) -> Served:
            return await stack.enter_async_context(served(engine, **options))

        yield start
