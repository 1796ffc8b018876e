"""A controller of raw ZeroMQ sockets, a store that remembers what it was asked, and workers between them."""

from __future__ import annotations

import asyncio
import contextlib
import socket as sockets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import zmq
import zmq.asyncio

from lmcache_kit.clock import WallClock
from lmcache_kit.errors import ConflictError, NotFoundError, UnknownNameError
from lmcache_kit.instance.config.loading import instance_config
from lmcache_kit.instance.core.events import CacheChange
from lmcache_kit.instance.worker.worker import ControllerWorker
from lmcache_kit.kv.keys import ChunkKey
from lmcache_kit.messages import (
    BatchedKVOperationMsg,
    FullSyncBatchMsg,
    FullSyncCommand,
    FullSyncEndMsg,
    FullSyncStartMsg,
    FullSyncStartRetMsg,
    FullSyncStatusMsg,
    FullSyncStatusRetMsg,
    HeartbeatMsg,
    HeartbeatRetMsg,
    JobInfo,
    RegisterMsg,
    RegisterRetMsg,
    decode_control_reply,
    decode_pushed,
    decode_worker_request,
    encode,
)

DEADLINE = 30.0


async def eventually(condition: Callable[[], object], *, deadline: float = DEADLINE) -> None:
    """Wait until ``condition`` holds."""
    async with asyncio.timeout(deadline):
        while not condition():  # noqa: ASYNC110  (the conditions are of many kinds)
            await asyncio.sleep(0.005)


class FakeController:
    """Speaks the protocol page and keeps an index; what it loses or refuses is up to the test."""

    def __init__(self, *, pull: int = 0, reply: int = 0, heartbeat: bool = False, with_reply: bool = True) -> None:
        self.context = zmq.asyncio.Context()
        self.received: list[Any] = []
        self.index: dict[str, set[int]] = defaultdict(set)
        self.numbers: dict[str, list[int]] = defaultdict(list)
        self.workers: dict[str, Any] = {}
        self.syncs: dict[str, dict[str, Any]] = {}
        self.lose: Callable[[Any], bool] = lambda message: False
        self.answer: Callable[[Any], Any] | None = None
        self.garbled = 0
        self.commands: list[FullSyncCommand] = []
        self._sockets: list[zmq.asyncio.Socket] = []
        self.pull_port = self._bind(zmq.PULL, pull, self._on_pull)
        self.reply_port = self._bind(zmq.ROUTER, reply, self._on_reply) if with_reply else 0
        self.heartbeat_port = self._bind(zmq.ROUTER, 0, self._on_reply) if heartbeat else 0

    def _bind(self, kind: int, port: int, handler: Callable[[list[bytes]], Awaitable[list[bytes] | None]]) -> int:
        socket = self.context.socket(kind)
        socket.linger = 0
        for attempt in range(200):  # a port that was just closed may need a moment
            try:
                socket.bind(f"tcp://127.0.0.1:{port}")
                break
            except zmq.ZMQError:
                if attempt == 199:
                    raise
                time.sleep(0.02)
        self._sockets.append(socket)
        self._tasks = [
            *getattr(self, "_tasks", []),
            asyncio.get_running_loop().create_task(self._loop(socket, handler)),
        ]
        return int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])

    async def _loop(self, socket: zmq.asyncio.Socket, handler: Any) -> None:
        while True:
            answer = await handler(await socket.recv_multipart())
            if answer is not None:
                await socket.send_multipart(answer)

    async def _on_pull(self, frames: list[bytes]) -> None:
        for frame in frames:
            message = decode_pushed(frame)
            self.received.append(message)
            if self.lose(message):
                continue
            match message:
                case BatchedKVOperationMsg():
                    for operation in message.operations:
                        self.numbers[message.location].append(operation.seq_num)
                        held = self.index[message.location]
                        (held.add if operation.op_type == "admit" else held.discard)(operation.key)
                case FullSyncBatchMsg():
                    sync = self.syncs.get(message.sync_id)
                    if sync is not None:
                        sync["batches"][message.batch_id] = message.keys
                case FullSyncEndMsg():
                    sync = self.syncs.get(message.sync_id)
                    if sync is not None and len(sync["batches"]) == sync["count"]:
                        sync["done"] = True
                        self.index[message.location] = {key for keys in sync["batches"].values() for key in keys}

    async def _on_reply(self, frames: list[bytes]) -> list[bytes] | None:
        message = decode_worker_request(frames[-1])
        self.received.append(message)
        if self.lose(message):
            return None
        if self.garbled:
            self.garbled -= 1
            return [*frames[:-1], b"\xff\x00nonsense"]
        reply = self.answer(message) if self.answer is not None else None
        reply = reply or self._reply(message)
        return [*frames[:-1], encode(reply)]

    def _reply(self, message: Any) -> Any:
        match message:
            case RegisterMsg():
                self.workers[message.instance_id] = message
                url = f"127.0.0.1:{self.heartbeat_port}"
                return RegisterRetMsg(extra_config={"heartbeat_url": url} if self.heartbeat_port else {})
            case HeartbeatMsg():
                commands, self.commands = self.commands, []
                if message.instance_id not in self.workers:
                    self.workers[message.instance_id] = message
                    commands = [FullSyncCommand(reason="worker_re_registered")]
                return HeartbeatRetMsg(commands=commands)
            case FullSyncStartMsg():
                self.syncs[message.sync_id] = {"count": message.batch_count, "batches": {}, "done": False}
                return FullSyncStartRetMsg(sync_id=message.sync_id, accepted=True)
            case FullSyncStatusMsg():
                sync = self.syncs.get(message.sync_id, {"count": 0, "batches": {}, "done": False})
                missing = [batch for batch in range(sync["count"]) if batch not in sync["batches"]]
                return FullSyncStatusRetMsg(
                    sync_id=message.sync_id,
                    is_complete=sync["done"],
                    global_progress=float(sync["done"]),
                    can_exit_freeze=sync["done"],
                    missing_batches=missing,
                )
        raise AssertionError(message)

    def of(self, kind: type) -> list[Any]:
        return [message for message in self.received if isinstance(message, kind)]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for socket in self._sockets:
            socket.close(linger=0)
        self.context.term()


class FakeStore:
    """Holds keys, records calls."""

    def __init__(self) -> None:
        self.held: dict[str, dict[int, ChunkKey]] = {"LocalCPUBackend": {}, "LocalDiskBackend": {}}
        self.calls: list[tuple[Any, ...]] = []
        self.jobs: dict[str, JobInfo] = {}
        self.gate: asyncio.Event | None = None
        self.listeners: list[Callable[[CacheChange], None]] = []

    def change(self, op: Any, location: str, value: int) -> None:
        key = ChunkKey("m", value)
        if op == "admit":
            self.held[location][value] = key
        else:
            self.held[location].pop(value, None)
        for listener in self.listeners:
            listener(CacheChange(op, location, key))

    def _check(self, location: str) -> None:
        if location not in self.held:
            raise UnknownNameError("location", location, self.held)

    def locations(self) -> list[str]:
        return list(self.held)

    def contents(self, location: str) -> list[ChunkKey]:
        return list(self.held[location].values())

    def pin(self, location: str, tokens: Any, *, owner: str = "", ttl: float | None = None) -> int:
        self._check(location)
        self.calls.append(("pin", location, list(tokens), owner, ttl))
        return len(tokens)

    def unpin(self, location: str, tokens: Any, *, owner: str = "") -> int:
        self._check(location)
        self.calls.append(("unpin", location, tokens, owner))
        return 5 if tokens is None else len(tokens)

    async def clear(self, location: str) -> int:
        self._check(location)
        if self.gate is not None:
            await self.gate.wait()
        self.calls.append(("clear", location))
        return 7

    def _start(self, event_id: str, *call: Any) -> JobInfo:
        if event_id in self.jobs:
            raise ConflictError(f"event {event_id!r} is used")
        self.calls.append(call)
        self.jobs[event_id] = JobInfo(status="running", num_tokens=12)
        return self.jobs[event_id]

    def start_compress(self, event_id: str, method: str, location: str, tokens: Any) -> JobInfo:
        if method != "zstd":
            raise UnknownNameError("compression method", method, ["zstd"])
        return self._start(event_id, "compress", method, location, tokens)

    def start_decompress(self, event_id: str, method: str, location: str, tokens: Any) -> JobInfo:
        return self._start(event_id, "decompress", method, location, tokens)

    def start_move(
        self, event_id: str, location: str, peer_url: str, target_location: str, tokens: Any, *, copy: bool
    ) -> JobInfo:
        return self._start(event_id, "move", location, peer_url, target_location, tokens, copy)

    def job(self, event_id: str) -> JobInfo:
        if event_id not in self.jobs:
            raise NotFoundError(f"no event {event_id!r}")
        return self.jobs[event_id]


class Caller:
    """A controller's side of the control socket: DEALER with correlation ids."""

    def __init__(self, context: zmq.asyncio.Context, port: int) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(f"tcp://127.0.0.1:{port}")

    async def call(self, message: Any, *, raw: bytes | None = None) -> Any:
        async with asyncio.timeout(DEADLINE):
            await self.socket.send_multipart([b"id", b"", encode(message) if raw is None else raw])
            frames = await self.socket.recv_multipart()
        assert frames[:2] == [b"id", b""]
        return decode_control_reply(frames[2])


@pytest.fixture
async def controllers() -> AsyncIterator[Callable[..., FakeController]]:
    """Makes fake controllers, closed afterwards."""
    made: list[FakeController] = []

    def make(**options: Any) -> FakeController:
        made.append(FakeController(**options))
        return made[-1]

    yield make
    for controller in made:
        with contextlib.suppress(zmq.ZMQError):
            await controller.close()


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
async def workers(store: FakeStore) -> AsyncIterator[Callable[..., Awaitable[ControllerWorker]]]:
    """Makes started workers of one store, closed afterwards."""
    made: list[ControllerWorker] = []

    async def make(pull: int, reply: int, *, health: int = 0, **keys: Any) -> ControllerWorker:
        config = instance_config(
            {
                "enable_controller": True,
                "lmcache_instance_id": "one",
                "controller_pull_url": f"localhost:{pull}",
                "controller_reply_url": f"localhost:{reply}",
                "lmcache_worker_heartbeat_time": 1,
                "lmcache_worker_heartbeat_delay_time": 0,
                **keys,
            }
        )

        async def error_code() -> int:
            return health

        worker = ControllerWorker(
            config,
            store,
            WallClock(),
            peer_url="tcp://127.0.0.1:8200",
            methods=["naive", "zstd"],
            model="tiny",
            health=error_code,
        )
        await worker.start()
        made.append(worker)
        store.listeners.append(worker.on_change)
        return worker

    yield make
    for worker in made:
        await worker.close()


@pytest.fixture
async def caller() -> AsyncIterator[Callable[[int], Caller]]:
    """Makes callers of control sockets, closed afterwards."""
    context = zmq.asyncio.Context()
    made: list[Caller] = []

    def make(port: int) -> Caller:
        made.append(Caller(context, port))
        return made[-1]

    yield make
    for one in made:
        one.socket.close(linger=0)
    context.term()


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    return eventually


@pytest.fixture
def free_port() -> Callable[[], int]:
    """A port that is free now."""

    def find() -> int:
        with sockets.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find
