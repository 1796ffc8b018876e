"""One plugin of each of the ten kinds, all of them third-party as far as the framework can tell.

Each leaves a mark in the folder that ``TEN_PLUGINS_MARKS`` names, so a test sees which of them were really used, and in
which process. Where a built-in does the work, it is wrapped: what is tested is that the hook is followed.
"""

from __future__ import annotations

import bisect
import dataclasses
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lmcache_kit.contracts import (
    Buffer,
    Channel,
    CompressionMethod,
    CompressionPlugin,
    Engine,
    EngineInfo,
    EnginePlugin,
    EngineSequence,
    EvictionPlugin,
    EvictionPolicy,
    FrameHandler,
    LaunchedProcess,
    Launcher,
    LauncherPlugin,
    LaunchSpec,
    Listener,
    Options,
    PlacementPlugin,
    PlacementPolicy,
    Promotion,
    Reporter,
    ReporterPlugin,
    SamplingParams,
    StorageBackend,
    StorageContext,
    StoragePlugin,
    TierView,
    TraceFormat,
    TracePlugin,
    TraceReader,
    TraceRecord,
    Transport,
    TransportPlugin,
    Workload,
    WorkloadContext,
    WorkloadPlugin,
    WorkloadResult,
)
from lmcache_kit.errors import BlobError, ConflictError, InvalidRequestError
from lmcache_kit.hookspecs import hookimpl
from lmcache_kit.kv import KVLayout, KVTensor


def mark(what: str) -> None:
    """``what`` was done here."""
    (Path(os.environ["TEN_PLUGINS_MARKS"]) / what).touch()


class Shelf(StorageBackend):
    """Memory, with the name on each object."""

    def __init__(self, context: StorageContext, label: str) -> None:
        self._label = label.encode()
        self._objects: dict[str, bytes] = {}
        mark(f"storage.made.{context.location}.{label}")

    def put(self, name: str, blob: Buffer) -> None:
        mark("storage.put")
        self._objects[name] = self._label + bytes(blob)

    def get(self, name: str) -> Buffer | None:
        found = self._objects.get(name)
        return None if found is None else memoryview(found)[len(self._label) :]

    def delete(self, name: str) -> bool:
        return self._objects.pop(name, None) is not None

    def size(self, name: str) -> int | None:
        found = self._objects.get(name)
        return None if found is None else len(found) - len(self._label)

    def entries(self) -> Iterator[tuple[str, int]]:
        return ((name, len(found) - len(self._label)) for name, found in self._objects.items())


class ShelfOptions(Options, frozen=True):
    label: str = ""


class Squeeze(CompressionMethod):
    """zlib; the payload begins with its own byte."""

    def encode(self, kv: KVTensor) -> Buffer:
        mark("compression.encode")
        return b"S" + zlib.compress(kv.tobytes_view())

    def decode(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> KVTensor:
        mark("compression.decode")
        stream = zlib.decompressobj()
        try:
            raw = stream.decompress(payload[1:], layout.nbytes(num_tokens) + 1)
        except zlib.error as error:
            raise BlobError(str(error)) from None
        whole = stream.eof and not stream.unused_data and len(raw) == layout.nbytes(num_tokens)
        if version != self.version or bytes(payload[:1]) != b"S" or not whole:
            raise BlobError("not squeezed")
        return KVTensor.from_bytes(raw, layout, num_tokens)


class Carrier(Transport):
    """The zmq transport under another scheme."""

    def __init__(self) -> None:
        from lmcache_kit.builtin.transports.zeromq import ZmqTransport

        self._inner = ZmqTransport()

    async def listen(self, address: str, handler: FrameHandler) -> Listener:
        mark("transport.listen")
        try:
            return CarrierListener(await self._inner.listen(address.replace("carrier://", "tcp://"), handler))
        except ConflictError as error:
            raise ConflictError(error.detail.replace("tcp://", "carrier://")) from None

    async def connect(self, address: str) -> Channel:
        mark("transport.connect")
        return await self._inner.connect(address.replace("carrier://", "tcp://"))


class CarrierListener(Listener):
    def __init__(self, inner: Listener) -> None:
        self._inner = inner

    @property
    def address(self) -> str:
        return self._inner.address.replace("tcp://", "carrier://")

    async def close(self) -> None:
        await self._inner.close()


class Parrot(Engine):
    """The synthetic engine under another name."""

    def __init__(self, model: str) -> None:
        from lmcache_kit.builtin.engines.options import SyntheticOptions
        from lmcache_kit.builtin.engines.synthetic import SyntheticEngine

        self._inner = SyntheticEngine(SyntheticOptions(num_layers=2, head_dim=8), model)
        mark(f"engine.made.{model}")

    @property
    def info(self) -> EngineInfo:
        return dataclasses.replace(self._inner.info, fingerprint="parrot-1")

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return self._inner.tokenize(text, add_special_tokens=add_special_tokens)

    def detokenize(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self._inner.detokenize(tokens, skip_special_tokens=skip_special_tokens)

    def token_text(self, token: int) -> str:
        return self._inner.token_text(token)

    def start(
        self, tokens: Sequence[int], *, prefix: KVTensor | None, prefill_block: int, sampling: SamplingParams
    ) -> EngineSequence:
        mark("engine.cold" if prefix is None else "engine.warm")
        return self._inner.start(tokens, prefix=prefix, prefill_block=prefill_block, sampling=sampling)


class Alphabetical(EvictionPolicy):
    """Evicts the first name in the alphabet."""

    def __init__(self, capacity: int | None) -> None:
        mark(f"eviction.made.{capacity}")
        self._keys: list[str] = []

    def admit(self, key: str, nbytes: int) -> None:
        place = bisect.bisect_left(self._keys, key)
        if self._keys[place : place + 1] != [key]:
            self._keys.insert(place, key)

    def touch(self, key: str) -> None:
        mark("eviction.touch")

    def remove(self, key: str, *, evicted: bool) -> None:
        if evicted:
            mark("eviction.evicted")
        place = bisect.bisect_left(self._keys, key)
        if self._keys[place : place + 1] == [key]:
            del self._keys[place]

    def victims(self) -> Iterator[str]:
        return iter(self._keys)


class BottomUp(PlacementPolicy):
    """Stores in the slowest tier, promotes what is hit, demotes nothing."""

    def on_store(self, tiers: Sequence[TierView], nbytes: int) -> Sequence[int]:
        mark("placement.on_store")
        return (len(tiers) - 1,)

    def on_idle(self, tiers: Sequence[TierView], held: Sequence[int], nbytes: int) -> Sequence[int]:
        mark("placement.on_idle")
        return ()

    def on_hit(self, tiers: Sequence[TierView], tier: int, nbytes: int) -> Promotion | None:
        mark("placement.on_hit")
        return Promotion(target=0, keep_source=True) if tier else None

    def on_evict(self, tiers: Sequence[TierView], tier: int, held: Sequence[int], nbytes: int) -> int | None:
        mark("placement.on_evict")
        return None


class TourOptions(Options, frozen=True):
    after: str | None = None


class Tour(Workload):
    """Everything that the other plugins are for, in order."""

    def __init__(self, after: str | None) -> None:
        self._after = after

    def needs(self) -> Sequence[str]:
        return () if self._after is None else (self._after,)

    def references(self) -> Sequence[tuple[str, str]]:
        return (("instance", "a"), ("location", "ShelfBackend"), ("compression", "squeeze"))

    async def run(self, context: WorkloadContext) -> WorkloadResult:
        a, b = context.instances["a"], context.instances["b"]
        tokens = await a.client.tokenize("a parrot says what it has heard")
        cold = await a.client.complete(tokens)
        started = await context.controller.compress("a", "squeeze", "ShelfBackend", tokens)
        packed = await context.controller.wait_finished(started["event_id"])
        # As often as it takes to fill the small tier above, into which what is read is promoted.
        warm = [await a.client.complete(tokens) for _ in range(2)]
        for number in range(4):
            for _ in range(2):
                await a.client.complete([number] * 32)
        moved = await context.controller.move(("a", "ShelfBackend"), ("b", "ShelfBackend"), tokens, copy=True)
        arrived = await context.controller.wait_finished(moved["event_id"])
        far = await b.client.complete(tokens)
        context.emit("tour_done", by="a plugin")
        texts = {each["choices"][0]["text"] for each in (cold, *warm, far)}
        values = {
            "locations": list(a.locations),
            "compress": packed["status"],
            "move": arrived["status"],
            "texts": len(texts),
            "far_cached": far["usage"]["prompt_tokens_details"]["cached_tokens"],
            "far_codecs": far["lmcache_kit"]["codecs"],
            "tokens": len(tokens),
            "rng": context.rng.random(),
        }
        return WorkloadResult(name=context.name, kind="tour", values=values)


class Lengths(TraceReader):
    """One request per line: seconds, input tokens, output tokens."""

    format: ClassVar[TraceFormat] = TraceFormat(
        block_size=0, tail="floor", id_scope="session", chained=True, time_unit=1.0
    )

    def read(self, path: Path) -> Iterator[TraceRecord]:
        mark("trace.read")
        try:
            text = path.read_text(errors="replace")
        except OSError as error:
            raise InvalidRequestError(f"{path} cannot be read: {error.strerror}") from None
        for number, line in enumerate(text.splitlines(), 1):
            try:
                arrival, given, made = map(float, line.split())
            except ValueError:
                raise InvalidRequestError(f"{path}:{number}: three numbers are needed") from None
            tokens = int(given)
            yield TraceRecord(
                arrival=arrival, input_tokens=tokens, output_tokens=int(made), block_ids=(), tail_tokens=tokens
            )


class Butler(Launcher):
    """The local launcher, announced."""

    def __init__(self) -> None:
        from lmcache_kit.builtin.launchers.local import LocalLauncher

        self._inner = LocalLauncher()

    async def launch(self, spec: LaunchSpec) -> LaunchedProcess:
        mark(f"launcher.{spec.name.replace(' ', '-')}")
        return await self._inner.launch(spec)

    async def close(self) -> None:
        mark("launcher.closed")
        await self._inner.close()


class Names(Reporter):
    """Names of the results, one per line."""

    file_name: ClassVar[str | None] = "names.txt"

    def render(self, report: Mapping[str, Any]) -> str:
        return "".join(f"{result['name']}\n" for result in report["results"])


@hookimpl
def lmcache_kit_storage_backends() -> Iterator[StoragePlugin]:
    yield StoragePlugin(
        name="shelf",
        summary="memory with labels",
        location="ShelfBackend",
        options=ShelfOptions,
        factory=lambda options, context: Shelf(context, options.label),  # type: ignore[attr-defined]
    )


@hookimpl
def lmcache_kit_compression_methods() -> Iterator[CompressionPlugin]:
    yield CompressionPlugin(
        name="squeeze",
        summary="zlib",
        factory=lambda options: Squeeze(),
        capabilities=frozenset({"lossless", "deterministic"}),
    )


@hookimpl
def lmcache_kit_transports() -> Iterator[TransportPlugin]:
    yield TransportPlugin(
        name="carrier", summary="zmq by another name", scheme="carrier", factory=lambda options: Carrier()
    )


@hookimpl
def lmcache_kit_engines() -> Iterator[EnginePlugin]:
    yield EnginePlugin(
        name="parrot", summary="says things", factory=lambda options, model: Parrot(model), default_model="polly"
    )


@hookimpl
def lmcache_kit_eviction_policies() -> Iterator[EvictionPlugin]:
    yield EvictionPlugin(
        name="alphabetical", summary="by name", factory=lambda options, capacity: Alphabetical(capacity)
    )


@hookimpl
def lmcache_kit_placement_policies() -> Iterator[PlacementPlugin]:
    yield PlacementPlugin(name="bottom_up", summary="slowest first", factory=lambda options: BottomUp())


@hookimpl
def lmcache_kit_workloads() -> Iterator[WorkloadPlugin]:
    yield WorkloadPlugin(
        name="tour",
        summary="uses all the others",
        options=TourOptions,
        factory=lambda options: Tour(options.after),  # type: ignore[attr-defined]
    )


@hookimpl
def lmcache_kit_trace_readers() -> Iterator[TracePlugin]:
    yield TracePlugin(name="lengths", summary="lengths only", factory=lambda options: Lengths())


@hookimpl
def lmcache_kit_launchers() -> Iterator[LauncherPlugin]:
    yield LauncherPlugin(name="butler", summary="announces the processes", factory=lambda options: Butler())


@hookimpl
def lmcache_kit_reporters() -> Iterator[ReporterPlugin]:
    yield ReporterPlugin(name="names", summary="names of the results", factory=lambda options: Names())
