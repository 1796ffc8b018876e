"""A controller on real sockets, and workers written against the wire format alone, as LMCache's speak it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import msgspec
import pytest
import zmq
import zmq.asyncio

from lmcache_kit.controller.config import ControllerConfig, MonitorPorts
from lmcache_kit.controller.server import ControllerServer

PATIENCE = 30.0


def builtin_keys(tokens: list[int], chunk: int = 256, none_hash: int = 0) -> list[int]:
    """Chunk keys as LMCache's default hash makes them, written out anew."""
    parent, keys = none_hash, []
    for start in range(0, len(tokens), chunk):
        parent = hash((parent, tuple(tokens[start : start + chunk]), ()))
        keys.append(parent)
    return keys


def num_tokens_of(tokens: list[int] | None) -> int:
    return 0 if tokens is None else len(tokens)


class FakeWorker:
    """A worker: DEALER to the reply port, PUSH to the pull port, REP as its control socket.

    ``answers`` maps a message type to a function from the message to the answer (None: never answer).
    """

    def __init__(
        self, context: zmq.asyncio.Context, ports: dict[str, int | None], instance: str, worker: int = 0, **extra: Any
    ) -> None:
        self._context = context
        self.ports = ports
        self.identity = {"instance_id": instance, "worker_id": worker}
        self.extra = extra
        self.calls: list[dict[str, Any]] = []
        self.answers: dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]] = {}
        self._numbers: dict[str, int] = {}
        self._open: list[zmq.asyncio.Socket] = []
        self._task: asyncio.Task[None] | None = None
        self.push = self._connect(zmq.PUSH, ports["pull"])
        self.port = 0

    def _connect(self, kind: int, port: int | None) -> zmq.asyncio.Socket:
        socket = self._context.socket(kind)
        socket.linger = 0
        socket.reconnect_ivl = 20
        socket.connect(f"tcp://127.0.0.1:{port}")
        self._open.append(socket)
        return socket

    async def listen(self, port: int = 0) -> None:
        """Open the control socket, anew when it was closed."""
        self._rep = self._context.socket(zmq.REP)
        self._rep.linger = 0
        self._rep.bind(f"tcp://127.0.0.1:{port}")
        self.port = int(self._rep.last_endpoint.rpartition(b":")[2])
        self._task = asyncio.create_task(self._serve(self._rep))

    async def _serve(self, rep: zmq.asyncio.Socket) -> None:
        while True:
            message = msgspec.msgpack.decode(await rep.recv())
            self.calls.append(message)
            answer = self.answers.get(message["type"], self._default)(message)
            if answer is None:
                await asyncio.Event().wait()
            await rep.send(msgspec.msgpack.encode(answer))

    @staticmethod
    def _default(message: dict[str, Any]) -> dict[str, Any]:
        kind = message["type"]
        if kind == "HealthWorkerMsg":
            return {"type": "HealthWorkerRetMsg", "error_code": 0}
        if kind == "CheckFinishWorkerMsg" or kind == "UnpinWorkerMsg":
            return {"type": "ErrorMsg", "error": f"Unknown message: {kind}"}
        return {"type": kind.replace("Msg", "RetMsg"), "num_tokens": num_tokens_of(message.get("tokens"))}

    async def ask(self, fields: dict[str, Any], *, socket: str = "reply") -> dict[str, Any]:
        """One request on a DEALER of its own."""
        dealer = self._connect(zmq.DEALER, self.ports[socket])
        try:
            await dealer.send_multipart([b"", msgspec.msgpack.encode(fields)])
            async with asyncio.timeout(PATIENCE):
                frames = await dealer.recv_multipart()
            assert frames[0] == b""
            return msgspec.msgpack.decode(frames[-1])
        finally:
            self._open.remove(dealer)
            dealer.close()

    def presence(self, kind: str) -> dict[str, Any]:
        address = {"ip": "127.0.0.1", "port": self.port, "peer_init_url": None}
        return {"type": kind, **self.identity, **address, **self.extra}

    async def register(self) -> dict[str, Any]:
        if self._task is None:
            await self.listen()
        return await self.ask(self.presence("RegisterMsg"))

    async def heartbeat(self) -> list[dict[str, Any]]:
        return (await self.ask(self.presence("HeartbeatMsg"), socket="heartbeat"))["commands"]

    async def send(self, *messages: dict[str, Any]) -> None:
        """Push messages as the parts of one multipart message."""
        await self.push.send_multipart([msgspec.msgpack.encode(message) for message in messages])

    def operations(self, op: str, keys: list[int], location: str) -> dict[str, Any]:
        events = []
        for key in keys:
            number = self._numbers.get(location, 0)
            self._numbers[location] = number + 1
            events.append({"op_type": op, "key": key, "seq_num": number})
        return {"type": "BatchedKVOperationMsg", **self.identity, "location": location, "operations": events}

    async def admit(self, keys: list[int], location: str = "LocalCPUBackend") -> None:
        await self.send(self.operations("admit", keys, location))

    async def full_sync(self, keys: list[int], location: str = "LocalCPUBackend", size: int = 2) -> dict[str, Any]:
        name = {**self.identity, "location": location, "sync_id": f"sync-{id(keys)}"}
        batches = [keys[i : i + size] for i in range(0, len(keys), size)] or [[]]
        start = {"type": "FullSyncStartMsg", **name, "total_keys": len(keys), "batch_count": len(batches)}
        assert (await self.ask(start))["accepted"]
        for number, batch in enumerate(batches):
            await self.send({"type": "FullSyncBatchMsg", **name, "batch_id": number, "keys": batch})
        await self.send({"type": "FullSyncEndMsg", **name, "actual_total_keys": len(keys)})
        while True:
            status = await self.ask({"type": "FullSyncStatusMsg", **name})
            if status["is_complete"]:
                return status
            await asyncio.sleep(0.01)

    async def die(self) -> None:
        """Close the control socket without a word."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            self._rep.close(linger=0)

    async def close(self) -> None:
        await self.die()
        while self._open:
            self._open.pop().close(linger=0)


class Fleet:
    """A running controller, its HTTP client, and workers that are closed at the end."""

    def __init__(self, server: ControllerServer, http: httpx.AsyncClient, context: zmq.asyncio.Context) -> None:
        self.server = server
        self.http = http
        self._context = context
        self.workers: list[FakeWorker] = []

    @property
    def ports(self) -> dict[str, int | None]:
        monitor = self.server.monitor
        return {"pull": monitor.pull_port, "reply": monitor.reply_port, "heartbeat": monitor.heartbeat_port}

    def worker(self, instance: str = "a", worker: int = 0, **extra: Any) -> FakeWorker:
        self.workers.append(FakeWorker(self._context, self.ports, instance, worker, **extra))
        return self.workers[-1]

    async def joined(self, instance: str = "a", worker: int = 0, **extra: Any) -> FakeWorker:
        made = self.worker(instance, worker, **extra)
        assert (await made.register())["type"] == "RegisterRetMsg"
        return made

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.http.post(path, content=msgspec.json.encode(body))

    async def held(self, tokens: list[int], instance: str = "a") -> int:
        return (await self.post("/lookup", tokens=tokens)).json()["prefix"].get(instance, 0)


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    """Wait until ``check`` holds."""
    async with asyncio.timeout(PATIENCE):
        while not await check():  # noqa: ASYNC110  (what is waited for happens in another process or thread)
            await asyncio.sleep(0.01)


@pytest.fixture
def until() -> Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]:
    return eventually


@pytest.fixture
def keys_of() -> Callable[..., list[int]]:
    return builtin_keys


@pytest.fixture
async def make_fleet() -> AsyncIterator[Callable[..., Awaitable[Fleet]]]:
    async with contextlib.AsyncExitStack() as stack:
        fleets: list[Fleet] = []
        context = zmq.asyncio.Context()

        async def make(**settings: Any) -> Fleet:
            config = ControllerConfig(port=0, monitor=settings.pop("monitor", MonitorPorts(0, 0, 0)), **settings)
            server = await stack.enter_async_context(ControllerServer(config))
            url = f"http://127.0.0.1:{server.http_port}"
            limits = httpx.Limits(max_connections=None)
            client = httpx.AsyncClient(base_url=url, timeout=PATIENCE, trust_env=False, limits=limits)
            fleets.append(Fleet(server, await stack.enter_async_context(client), context))
            return fleets[-1]

        yield make
        for fleet in fleets:
            for worker in fleet.workers:
                await worker.close()
        context.destroy(linger=0)


@pytest.fixture
async def fleet(make_fleet: Callable[..., Awaitable[Fleet]]) -> Fleet:
    return await make_fleet()
