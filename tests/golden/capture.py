"""Captures the frames and chunk keys in this folder again, from real LMCache.

    out/interop/lmcache/bin/python tests/golden/capture.py --vllm-python out/interop/vllm/bin/python [--output-dir DIR]

runs in an environment of LMCache (``make test-interop`` makes these two) and uses nothing of this project.
A real controller and two real workers talk to each other through a recorder, which notes every payload as it came.
What LMCache defines and never sends is encoded by its own classes. What LMCache 0.3 sent is written down as documented.
The ids, ports and times in the frames differ from run to run; everything else should be as it is here.

LMCache takes the first hash of a chain, and the sha256 algorithms, from vLLM when that can be imported: chunk keys made
so come from the environment of vLLM, with LMCache's packages beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.asyncio

HERE = Path(__file__).parent
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
CPU, DISK = "LocalCPUBackend", "LocalDiskBackend"
PATIENCE = 120.0


# --- the recorder -----------------------------------------------------------------------------------------------------


class Recorder:
    """Sits between workers and controller; every payload goes on as it is, but for the addresses that lead past it."""

    def __init__(self, pull: int, reply: int, heartbeat: int, ports: dict[str, int]) -> None:
        self.frames: list[tuple[str, bytes]] = []
        self.sent: set[bytes] = set()
        self._context = zmq.asyncio.Context()
        self._ports = ports
        self._workers: dict[int, int] = {}
        self._tasks = [
            self._task(self._pushed(self._bound(zmq.PULL, ports["pull"]), self._connected(zmq.PUSH, pull))),
            self._task(self._asked(self._bound(zmq.ROUTER, ports["reply"]), reply)),
            self._task(self._asked(self._bound(zmq.ROUTER, ports["heartbeat"]), heartbeat)),
        ]

    def _task(self, work: Any) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(work)

    def _bound(self, kind: int, port: int) -> zmq.asyncio.Socket:
        made = self._context.socket(kind)
        made.bind(f"tcp://127.0.0.1:{port}")
        return made

    def _connected(self, kind: int, port: int, host: str = "127.0.0.1") -> zmq.asyncio.Socket:
        made = self._context.socket(kind)
        made.linger = 0
        made.connect(f"tcp://{host}:{port}")
        return made

    def _note(self, direction: str, payload: bytes) -> None:
        self.frames.append((direction, payload))

    async def _pushed(self, workers: zmq.asyncio.Socket, controller: zmq.asyncio.Socket) -> None:
        while True:
            parts = await workers.recv_multipart()
            for part in parts:
                self._note("worker pushes", part)
            await controller.send_multipart(parts)

    async def _asked(self, workers: zmq.asyncio.Socket, port: int) -> None:
        controllers: dict[bytes, zmq.asyncio.Socket] = {}
        while True:
            identity, empty, payload = await workers.recv_multipart()
            self._note("worker asks", payload)
            if identity not in controllers:
                controllers[identity] = self._connected(zmq.DEALER, port)
            await controllers[identity].send_multipart([empty, self._rerouted(payload)])
            _, answer = await controllers[identity].recv_multipart()
            self._note("controller answers", answer)
            await workers.send_multipart([identity, empty, self._with_our_heartbeat(answer)])

    def _rerouted(self, payload: bytes) -> bytes:
        """A registration with the port of a relay in place of the worker's."""
        message = msgspec.msgpack.decode(payload)
        if message["type"] not in ("RegisterMsg", "HeartbeatMsg"):
            return payload
        if message["port"] not in self._workers:
            (relay,) = free_ports(1)
            self._workers[message["port"]] = relay
            inside = self._connected(zmq.REQ, message["port"])
            self._tasks.append(self._task(self._controlled(self._bound(zmq.REP, relay), inside)))
        message.update(ip="127.0.0.1", port=self._workers[message["port"]])
        return msgspec.msgpack.encode(message)

    async def _controlled(self, controller: zmq.asyncio.Socket, worker: zmq.asyncio.Socket) -> None:
        while True:
            payload = await controller.recv()
            self._note("controller asks", payload)
            await worker.send(payload)
            answer = await worker.recv()
            self._note("worker answers", answer)
            await controller.send(answer)

    def _with_our_heartbeat(self, payload: bytes) -> bytes:
        message = msgspec.msgpack.decode(payload)
        if message["type"] == "RegisterRetMsg" and "heartbeat_url" in message["extra_config"]:
            message["extra_config"]["heartbeat_url"] = f"127.0.0.1:{self._ports['heartbeat']}"
        return msgspec.msgpack.encode(message)

    def ask(self, payload: bytes) -> bytes:
        """Ask the controller through the recorder, as a worker would."""
        self.sent.add(payload)
        with zmq.Context() as context, context.socket(zmq.DEALER) as request:
            request.connect(f"tcp://127.0.0.1:{self._ports['reply']}")
            request.send_multipart([b"", payload])
            return request.recv_multipart()[-1]

    def control(self, worker_port: int, payload: bytes) -> bytes:
        """Send something to a worker's control socket through its relay, as a controller would."""
        self.sent.add(payload)
        with zmq.Context() as context, context.socket(zmq.REQ) as request:
            request.connect(f"tcp://127.0.0.1:{self._workers[worker_port]}")
            request.send(payload)
            return request.recv()

    def seen(self, type_name: str, direction: str | None = None) -> list[dict[str, Any]]:
        found = [msgspec.msgpack.decode(frame) for way, frame in self.frames if direction in (None, way)]
        return [message for message in found if message["type"] == type_name]

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._context.destroy(linger=0)


# --- processes --------------------------------------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def process(folder: Path, name: str, *command: object) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "LMCACHE_TRACK_USAGE": "false", "PYTHONHASHSEED": "0"}
    with (folder / f"{name}.log").open("wb") as log:
        child = subprocess.Popen(
            [str(part) for part in command], stdout=log, stderr=log, env=environment, cwd=folder, start_new_session=True
        )
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def call(port: int, path: str, body: dict[str, Any] | None = None) -> Any:
    """The JSON answer to a POST; also of one that was refused, as {"refused": ...}."""
    data = b"" if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data=data, method="POST", headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return {"refused": error.read().decode()}


async def until(check: Callable[[], Any], what: str, *, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if await asyncio.to_thread(check):
                return
        await asyncio.sleep(0.1)
    raise TimeoutError(f"not within {seconds:g} s: {what}")


# --- the conversation -------------------------------------------------------------------------------------------------


async def conversation(folder: Path) -> tuple[list[tuple[str, bytes]], set[bytes]]:
    """What controller and workers say to each other when each thing is done once; and what of it this script said."""
    http, pull, reply, heartbeat, *ours = free_ports(7)
    monitor = json.dumps({"pull": pull, "reply": reply, "heartbeat": heartbeat})
    controller = [Path(sys.executable).parent / "lmcache_controller", "--host", "127.0.0.1", "--port", http]
    recorder = Recorder(pull, reply, heartbeat, dict(zip(("pull", "reply", "heartbeat"), ours, strict=True)))
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(process(folder, "controller", *controller, "--monitor-ports", monitor))
            await until(lambda: "event_id" in call(http, "/lookup", {"tokens": [1]}), "the controller answers")
            workers = [await worker(stack, folder, name, *ours[:2]) for name in ("left", "right")]
            await talk(recorder, http, workers)
            for each in workers:
                each["process"].terminate()
            with contextlib.suppress(TimeoutError):
                await until(lambda: recorder.seen("DeRegisterMsg", "worker pushes"), "a worker leaves", seconds=10)
        return recorder.frames, recorder.sent
    finally:
        recorder.close()


async def worker(stack: contextlib.ExitStack, folder: Path, name: str, pull: int, reply: int) -> dict[str, Any]:
    control, init, lookup, api = free_ports(4)
    settings = {
        "local_cpu": True,
        "max_local_cpu_size": 0.01,
        "enable_controller": True,
        "lmcache_instance_id": name,
        "controller_pull_url": f"127.0.0.1:{pull}",
        "controller_reply_url": f"127.0.0.1:{reply}",
        "lmcache_worker_ports": [control],
        "lmcache_worker_heartbeat_delay_time": 25,
        "lmcache_worker_heartbeat_time": 1,
        "internal_api_server_enabled": True,
        "internal_api_server_host": "127.0.0.1",
        "internal_api_server_port_start": api - 1,
        "enable_p2p": True,
        "p2p_host": "127.0.0.1",
        "p2p_init_ports": [init],
        "p2p_lookup_ports": [lookup],
        "transfer_channel": "mock_memory",
        "extra_config": {
            "full_sync_startup_delay_s": 0.0,
            "full_sync_status_poll_interval_s": 0.2,
            "full_sync_batch_size": 1,
        },
    }
    config = folder / f"{name}.yaml"
    config.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "lmcache.v1.standalone", "--config", config, "--model-name", MODEL]
    child = stack.enter_context(process(folder, name, *command, "--kv-shape", "32,2,256,2,16"))
    await until(lambda: call(api, "/cache/retrieve?tokens_mock=1,2") is not None, f"worker {name} answers")
    return {"process": child, "api": api, "control": control}


async def talk(recorder: Recorder, http: int, workers: list[dict[str, Any]]) -> None:
    left, right = workers

    async def ask(port: int, path: str, **body: Any) -> Any:
        return await asyncio.to_thread(call, port, path, body or None)

    first, second = list(range(1000, 1256)), list(range(2000, 2256))
    here, there = {"instance_id": "left", "location": CPU}, {"instance_id": "right", "location": CPU}
    await ask(left["api"], "/cache/store?tokens_mock=1000,1256")
    await ask(left["api"], "/cache/store?tokens_mock=2000,2256")
    await until(lambda: recorder.seen("BatchedKVOperationMsg"), "admissions")
    await until(lambda: complete(recorder), "a full sync")  # with one of two workers synced it asks the other no more
    await until(lambda: any(not m["commands"] for m in recorder.seen("HeartbeatRetMsg")), "heartbeats without commands")
    for path, body in (
        ("/health", {"instance_id": "left"}),
        ("/pin", {**here, "tokens": first}),
        ("/compress", {**here, "method": "cachegen", "tokens": second}),
        ("/decompress", {**here, "method": "cachegen", "tokens": second}),
        (
            "/move",
            {"old_position": ["left", CPU], "new_position": ["right", CPU], "tokens": first, "should_copy": True},
        ),
    ):
        answer = await ask(http, path, **body)
        assert "refused" not in answer, (path, answer)
    refused = await ask(http, "/move", old_position=["left", CPU], new_position=["right", DISK], tokens=first)
    assert "refused" in refused

    def evicts() -> bool:
        # Chunks in use elsewhere are not cleared, and one cleared in the batch that admits it has no frame of its own:
        # once may be too early.
        call(right["api"], "/cache/store?tokens_mock=3000,3256")
        time.sleep(0.5)
        call(http, "/clear", there)
        time.sleep(0.5)
        return any(operation_kinds(message) == "evict" for message in recorder.seen("BatchedKVOperationMsg"))

    await until(evicts, "evictions")
    await asyncio.to_thread(unsaid, recorder, left["control"])


def unsaid(recorder: Recorder, control: int) -> None:
    """What these workers do not say, encoded by their classes; controller and worker answer it as they do."""
    from lmcache.v1.cache_controller import message as m

    held = recorder.seen("BatchedKVOperationMsg")[0]["operations"][0]["key"]
    start = {"instance_id": "left", "worker_id": 0, "location": CPU, "total_keys": 3, "batch_count": 3}
    for message in (
        m.BatchedP2PLookupMsg(hashes=[held, 5], instance_id="right", worker_id=0),
        m.BatchedP2PLookupMsg(hashes=[5], instance_id="right", worker_id=0),
        m.FullSyncStartMsg(sync_id="left_0_unsaid", **start),
        m.FullSyncStartMsg(sync_id="left_0_another", **start),
        m.FullSyncStatusMsg(instance_id="left", worker_id=0, sync_id="left_0_unsaid"),
        m.DeRegisterMsg(instance_id="left", worker_id=0, ip="127.0.0.1", port=1),
    ):
        recorder.ask(msgspec.msgpack.encode(message))
    recorder.control(control, msgspec.msgpack.encode(m.CheckFinishWorkerMsg(worker_event_id="CheckFinish0")))


def complete(recorder: Recorder) -> set[str]:
    return {message["sync_id"] for message in recorder.seen("FullSyncStatusRetMsg") if message["is_complete"]}


def operation_kinds(message: dict[str, Any]) -> str:
    return "+".join(sorted({operation["op_type"] for operation in message["operations"]}))


# --- what is kept -----------------------------------------------------------------------------------------------------


def variant(direction: str, message: dict[str, Any]) -> str:
    """Of all frames with the same answer the first is kept."""
    kind = message["type"]
    facts: dict[str, Callable[[], object]] = {
        "BatchedKVOperationMsg": lambda: operation_kinds(message),
        "HeartbeatRetMsg": lambda: "command" if message["commands"] else "nothing to do",
        "FullSyncBatchMsg": lambda: "keys" if message["keys"] else "no keys",
        "FullSyncStartRetMsg": lambda: "accepted" if message["accepted"] else "refused",
        "FullSyncStatusRetMsg": lambda: "missing" if message["missing_batches"] else str(message["is_complete"]),
        "BatchedP2PLookupRetMsg": lambda: "found" if message["layout_info"][0][2] else "nobody",
        "ErrorMsg": lambda: "unknown message" if "Unknown" in message["error"] else "failed",
    }
    detail = f", {facts[kind]()}" if kind in facts else ""
    return f"{kind}, {direction}{detail}"


def chosen(recorder_frames: list[tuple[str, bytes]], sent: set[bytes], version: str) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for direction, payload in recorder_frames:
        fields = msgspec.msgpack.decode(payload)
        if fields["type"] == "BatchedKVOperationMsg" and "+" in operation_kinds(fields):
            continue  # what comes together is a matter of milliseconds
        name = variant(direction, fields)
        source = "encoded" if payload in sent else "captured"
        if name not in found or (found[name]["source"], source) == ("encoded", "captured"):
            found[name] = frame(name, direction, source, version, payload)
    return list(found.values())


def frame(name: str, direction: str, source: str, version: str, payload: bytes) -> dict[str, Any]:
    decode = msgspec.json.decode if payload.startswith(b"{") else msgspec.msgpack.decode
    fields = decode(payload)
    shown = {"name": name, "direction": direction, "source": source, "version": version}
    return {**shown, "hex": payload.hex(), "fields": fields}


def never_sent(version: str, known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages that no part of LMCache sends, encoded by its classes."""
    from lmcache.v1.cache_controller import message as m

    change = {"instance_id": "left", "worker_id": 0, "key": 2**64 - 1, "location": CPU}
    made = [
        ("worker pushes", m.KVAdmitMsg(**change, seq_num=0)),
        ("worker pushes", m.KVEvictMsg(**change, seq_num=1)),
        ("worker pushes", m.DeRegisterMsg(instance_id="left", worker_id=0, ip="192.0.2.2", port=8001)),
        ("worker answers", m.CheckFinishWorkerRetMsg(status="done")),
    ]
    names = {each["name"] for each in known}
    frames = [
        frame(f"{type(message).__name__}, {direction}", direction, "encoded", version, msgspec.msgpack.encode(message))
        for direction, message in made
    ]
    return [each for each in frames if each["name"] not in names]


def documented() -> list[dict[str, Any]]:
    """What workers of LMCache 0.3 pushed, and payloads in JSON, written down as the protocol's description has them."""
    me = {"instance_id": "lmcache_default_instance", "worker_id": 0}
    old = [
        {"type": "RegisterMsg", **me, "ip": "localhost", "port": 8001, "distributed_url": "localhost:8002"},
        {"type": "KVAdmitMsg", **me, "key": 4446532143507722017, "location": CPU},
        {"type": "KVEvictMsg", **me, "key": -6761997240938222485, "location": CPU},
        {"type": "DeRegisterMsg", **me, "ip": "localhost", "port": 8001},
    ]
    operations = [{"op_type": "admit", "key": -5, "seq_num": 0}]
    in_json = {"type": "BatchedKVOperationMsg", **me, "location": CPU, "operations": operations}
    return [
        *(
            frame(f"{each['type']}, 0.3", "worker pushes", "documented", "0.3", msgspec.msgpack.encode(each))
            for each in old
        ),
        frame("BatchedKVOperationMsg, JSON", "worker pushes", "documented", "0.5.6", msgspec.json.encode(in_json)),
    ]


# --- chunk keys -------------------------------------------------------------------------------------------------------


def chunk_keys(vllm_python: str | None) -> list[dict[str, Any]]:
    """Keys that LMCache's token database makes, each set of them in a process of its own for the seed's sake."""
    found = []
    for python in (sys.executable, vllm_python):
        for seed in ("0", "123", None):
            if python is None:
                continue
            environment = {key: value for key, value in os.environ.items() if key != "PYTHONHASHSEED"}
            environment.update({} if seed is None else {"PYTHONHASHSEED": seed}, LMCACHE_TRACK_USAGE="false")
            import lmcache

            command = [python, __file__, "--chunk-keys-here", str(Path(lmcache.__file__).parents[1])]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
            made = {"vllm": python == vllm_python, "PYTHONHASHSEED": seed}
            found += [{**made, **each} for each in json.loads(done.stdout.splitlines()[-1])]
    return found


def chunk_keys_here(packages: str) -> list[dict[str, Any]]:
    sys.path.append(packages)
    import lmcache.v1.token_database as database
    from lmcache.v1.config import LMCacheEngineConfig

    with_vllm = importlib.util.find_spec("vllm") is not None
    prompts: list[dict[str, list[int]]] = [
        {"range": [1000, 1600]},
        {"tokens": [128000, 849, 21435, 279, 26431, 315, 85748, 6636, 304, 4221, 4211, 13]},
    ]
    found = []
    # Without vLLM, LMCache falls back to builtin whatever is asked for.
    for algorithm in ("builtin", "sha256_cbor", "sha256") if with_vllm else ("builtin",):
        for chunk_size, partial in ((256, True), (256, False), (16, True), (7, True)):
            config = LMCacheEngineConfig.from_defaults(
                chunk_size=chunk_size, pre_caching_hash_algorithm=algorithm, save_unfull_chunk=partial
            )
            made = database.ChunkedTokenDatabase(config)
            for prompt in prompts:
                tokens = prompt.get("tokens") or list(range(*prompt["range"]))
                keys = [key for _, _, key in made.process_tokens(tokens, make_key=False)]
                case = {"algorithm": algorithm, "none_hash": database.NONE_HASH, "chunk_size": chunk_size}
                found.append({**case, "save_unfull_chunk": partial, **prompt, "keys": keys})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", help="interpreter of an environment with vLLM, for chunk keys made with it")
    parser.add_argument("--output-dir", type=Path, default=HERE)
    parser.add_argument("--chunk-keys-here", metavar="PACKAGES", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.chunk_keys_here:
        print(json.dumps(chunk_keys_here(options.chunk_keys_here)))
        return
    version = importlib.metadata.version("lmcache")
    with tempfile.TemporaryDirectory() as folder:
        frames, sent = asyncio.run(conversation(Path(folder)))
    known = chosen(frames, sent, version)
    known += never_sent(version, known)
    known = [*sorted(known, key=lambda each: each["name"]), *documented()]
    write(options.output_dir / "frames.json", known)
    write(options.output_dir / "chunk_keys.json", chunk_keys(options.vllm_python))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """One row a line, so that differences can be read."""
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    print(f"{len(rows)} in {path}")


if __name__ == "__main__":
    main()
