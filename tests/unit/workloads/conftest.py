"""A fleet without processes: clients that keep real books, so that workloads can be checked against them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lmcache_kit.client import Completion
from lmcache_kit.clock import WallClock
from lmcache_kit.contracts.workload import InstanceHandle, WorkloadContext, WorkloadResult
from lmcache_kit.errors import UnavailableError

KV_BYTES = 10
CHUNK = 4


@dataclass
class Books:
    """What the made-up fleet holds: (instance, location) -> prefixes, and the bytes of each."""

    held: dict[tuple[str, str], dict[tuple[int, ...], int]] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[tuple[str, Any]] = field(default_factory=list)
    fail: set[str] = field(default_factory=set)
    text: Callable[[str], str] = str.upper


class FakeInstance:
    def __init__(self, name: str, books: Books) -> None:
        self.name, self.books, self.url = name, books, f"http://{name}"
        self.in_flight = self.most_in_flight = 0

    async def tokenize(self, prompt: str) -> list[int]:
        self.books.calls.append(("tokenize", prompt))
        return [ord(letter) for letter in prompt]

    async def stream_complete(self, prompt: str, *, max_tokens: int, temperature: float, **more: Any) -> Completion:
        import asyncio

        if self.name in self.books.fail:
            raise UnavailableError(f"{self.name} is away")
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(0.001)
        self.in_flight -= 1
        held = self.books.held.setdefault((self.name, "LocalCPUBackend"), {})
        tokens = tuple(ord(letter) for letter in prompt)
        cached = len(tokens) - 1 if tokens in held else 0
        stored = 0 if tokens in held else len(tokens)
        held.setdefault(tokens, len(tokens) * KV_BYTES)
        self.books.calls.append(("complete", (self.name, prompt, max_tokens, temperature, more)))
        facts = {
            "cached_tokens_by_location": {"LocalCPUBackend": cached} if cached else {},
            "codecs": {"naive": 1} if cached else {},
            "load_seconds": 0.001,
            "prefill_seconds": 0.002,
            "stored_tokens": stored,
            "loaded_bytes": cached * KV_BYTES // 2,
            "loaded_kv_bytes": cached * KV_BYTES,
            "stored_bytes": stored * KV_BYTES,
            "stored_kv_bytes": stored * KV_BYTES,
        }
        usage = {
            "prompt_tokens": len(tokens),
            "completion_tokens": max_tokens,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        return Completion(
            text=self.books.text(prompt),
            ttft_seconds=0.001 if cached else 0.01,
            seconds=0.02,
            usage=usage,
            raw={"usage": usage, "lmcache_kit": facts},
        )

    async def complete(self, prompt: str, **more: Any) -> dict[str, Any]:
        done = await self.stream_complete(prompt, **more)
        return {**done.raw, "choices": [{"text": done.text}]}

    async def health(self) -> dict[str, Any]:
        return {"chunk_size": CHUNK}

    async def metrics(self) -> str:
        used: dict[str, int] = {"LocalCPUBackend": 0, "LocalDiskBackend": 0}
        for (instance, location), held in self.books.held.items():
            if instance == self.name:
                used[location] += sum(held.values())
        lines = [
            f'lmcache_kit_tier_used_bytes{{instance_id="{self.name}",location="{location}"}} {value}'
            for location, value in used.items()
        ]
        return "# TYPE lmcache_kit_tier_used_bytes gauge\n" + "\n".join(lines) + "\n"


class FakeController:
    def __init__(self, books: Books) -> None:
        self.books = books

    async def lookup(self, tokens: Sequence[int], *, explain: bool = False) -> dict[str, Any]:
        holders: dict[str, dict[str, int]] = {}
        for (instance, location), held in self.books.held.items():
            if tuple(tokens) in held:
                holders.setdefault(instance, {})[location] = len(tokens)
        best = {instance: next(iter(found.items())) for instance, found in holders.items()}
        return {
            "event_id": "x",
            "layout_info": {instance: list(entry) for instance, entry in best.items()},
            "holders": holders,
            "prefix": {instance: max(found.values()) for instance, found in holders.items()},
        }

    def _job(self, tokens: int, before: int, after: int) -> dict[str, Any]:
        event_id = f"event-{len(self.books.jobs)}"
        failed = "jobs" in self.books.fail
        self.books.jobs[event_id] = {
            "status": "failed" if failed else "done",
            "error": "the disk is full" if failed else None,
            "num_tokens": tokens,
            "tokens_done": tokens,
            "bytes_before": before,
            "bytes_after": after,
            "seconds": 0.5,
            "device": "cpu",
            "note": None,
        }
        return {"event_id": event_id, "num_tokens": tokens}

    async def compress(self, instance: str, method: str, location: str, tokens: Sequence[int]) -> dict[str, Any]:
        self.books.calls.append(("compress", (instance, method, location, tuple(tokens))))
        held = self.books.held[instance, location]
        before = held[tuple(tokens)]
        held[tuple(tokens)] = before // 2
        return self._job(len(tokens), before, before // 2)

    async def decompress(self, instance: str, method: str, location: str, tokens: Sequence[int]) -> dict[str, Any]:
        held = self.books.held[instance, location]
        before = held[tuple(tokens)]
        held[tuple(tokens)] = before * 2
        return self._job(len(tokens), before, before * 2)

    async def move(
        self, old: tuple[str, str], new: tuple[str, str], tokens: Sequence[int], *, copy: bool
    ) -> dict[str, Any]:
        source = self.books.held[old]
        nbytes = source[tuple(tokens)]
        if "move" not in self.books.fail:
            self.books.held.setdefault(new, {})[tuple(tokens)] = nbytes
            if not copy:
                del source[tuple(tokens)]
        return self._job(len(tokens), nbytes, nbytes)

    async def pin(self, instance: str, location: str, tokens: Sequence[int], **more: Any) -> dict[str, Any]:
        self.books.calls.append(("pin", (instance, location, len(tokens), more)))
        return {"event_id": "x", "num_tokens": len(tokens)}

    async def unpin(self, instance: str, location: str, tokens: Sequence[int], **more: Any) -> dict[str, Any]:
        self.books.calls.append(("unpin", (instance, location, len(tokens), more)))
        return {"event_id": "x", "num_tokens": len(tokens)}

    async def clear(self, instance: str, location: str) -> dict[str, Any]:
        dropped = self.books.held.pop((instance, location), {})
        return {"event_id": "x", "num_tokens": sum(map(len, dropped))}

    async def wait_finished(self, event_id: str, *, timeout: float) -> dict[str, Any]:
        return self.books.jobs[event_id]


class Fleet:
    """Runs workloads one after another, as the runner does."""

    def __init__(self, folder: Path) -> None:
        self.books = Books()
        self.folder = folder
        self.clients = {name: FakeInstance(name, self.books) for name in ("a", "b")}
        self.notes: dict[str, Any] = {}
        self.results: dict[str, WorkloadResult] = {}
        self.events: list[dict[str, Any]] = []

    async def run(self, name: str, kind: str, **options: Any) -> dict[str, Any]:
        from lmcache_kit.contracts.records import WorkloadPlugin
        from lmcache_kit.plugins import PluginRegistry

        plugins = PluginRegistry(allow=[])
        record = plugins.get(WorkloadPlugin, kind)
        workload = record.factory(plugins.options(record, options))
        context = WorkloadContext(
            name=name,
            controller=FakeController(self.books),  # type: ignore[arg-type]
            instances={
                key: InstanceHandle(
                    instance_id=key,
                    url=client.url,
                    client=client,  # type: ignore[arg-type]
                    locations=("LocalCPUBackend", "LocalDiskBackend"),
                    model="m",
                )
                for key, client in self.clients.items()
            },
            clock=WallClock(),
            rng=random.Random(1),
            base_dir=self.folder,
            earlier=self.results,
            notes=self.notes,
            emit=lambda event, **facts: self.events.append({"event": event, **facts}),
            progress=lambda line: None,
        )
        result = await workload.run(context)
        assert result.name == name
        self.results[name] = result
        return dict(result.values)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    (tmp_path / "text.txt").write_text("\n\n".join(f"This is paragraph {n} of it." for n in range(30)))
    (tmp_path / "questions.txt").write_text("Why?\nHow?\n\nWhen?\n")
    return Fleet(tmp_path)
