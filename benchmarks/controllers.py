"""Controllers to measure, each in a process of its own: ours, and a real LMCache one from another environment."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import zmq

from lmcache_kit.kv.hashing import ChunkHasher, HashSpec
from lmcache_kit.messages import BatchedKVOperationMsg, KVOpEvent, RegisterMsg, encode

__all__ = ["BATCH", "HASH_SEED", "INSTANCE", "LOCATION", "Side", "our_controller", "peer_controller", "peer_facts"]

INSTANCE, LOCATION = "bench", "LocalCPUBackend"
BATCH = 50
"""Operations of one message, as LMCache workers batch them."""
HASH_SEED = "0"
STARTUP_SECONDS = 120.0

_FACTS = """
import importlib.metadata as m, json, platform
names = "lmcache torch vllm fastapi starlette uvicorn uvloop httptools pydantic msgspec pyzmq".split()
found = {d.metadata["Name"].lower(): d.version for d in m.distributions() if d.metadata["Name"]}
print(json.dumps({"python": platform.python_version(), **{n: found[n] for n in names if n in found}}))
"""


_QUIET_PEER = """
import runpy, uvicorn.config
uvicorn.config.LOGGING_CONFIG["loggers"]["uvicorn.access"]["level"] = "CRITICAL"
runpy.run_module("lmcache.v1.api_server", run_name="__main__")
"""


class Side:
    """A running controller under load: its HTTP port, and a worker's two sockets to it."""

    def __init__(self, name: str, pid: int, http: int, pull: int, reply: int, context: zmq.Context[Any]) -> None:
        self.name, self.pid, self.http = name, pid, http
        self._sent = 0
        self._push = context.socket(zmq.PUSH)
        self._push.sndhwm = 0
        self._push.linger = 0
        self._push.connect(f"tcp://127.0.0.1:{pull}")
        self._register(context, reply)

    def close(self) -> None:
        self._push.close()

    def _register(self, context: zmq.Context[Any], reply: int) -> None:
        # A worker without a control socket: nothing here asks it to do anything.
        message = RegisterMsg(instance_id=INSTANCE, worker_id=0, ip="127.0.0.1", port=1)
        with context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            dealer.connect(f"tcp://127.0.0.1:{reply}")
            dealer.send_multipart([b"", encode(message)])
            if not dealer.poll(int(STARTUP_SECONDS * 1000)):
                raise SystemExit(f"{self.name} did not answer a registration")
            answer = msgspec.msgpack.decode(dealer.recv_multipart()[-1])
            if answer["type"] != "RegisterRetMsg":
                raise SystemExit(f"{self.name} refused a registration: {answer}")

    def frames(self, keys: Sequence[int]) -> list[bytes]:
        """Admit messages of ``BATCH`` operations each, with the sequence numbers that come next."""
        messages = []
        for start in range(0, len(keys), BATCH):
            operations = [
                KVOpEvent(op_type="admit", key=key, seq_num=self._sent + offset)
                for offset, key in enumerate(keys[start : start + BATCH])
            ]
            self._sent += len(operations)
            message = BatchedKVOperationMsg(instance_id=INSTANCE, worker_id=0, location=LOCATION, operations=operations)
            messages.append(encode(message))
        return messages

    def push(self, frames: Sequence[bytes]) -> None:
        for frame in frames:
            self._push.send(frame)

    def admit(self, keys: Sequence[int]) -> None:
        """Admit keys that it does not know yet, and wait until it counts them."""
        target = self.key_count() + len(keys)
        self.push(self.frames(keys))
        deadline = time.monotonic() + STARTUP_SECONDS
        while (count := self.key_count()) < target:
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.name} counts {count} keys, not {target}")
            time.sleep(0.02)

    def key_count(self) -> int:
        """Distinct chunks that it knows of."""
        return int(self._get("/controller/key-stats")["total_key_count"])

    def lookup(self, tokens: Sequence[int]) -> int:
        """Tokens that it credits our instance with."""
        found = self._get("/lookup", {"tokens": list(tokens)})["layout_info"].get(INSTANCE, [LOCATION, 0])
        return int(found[1])

    def hold(self, prompts: Sequence[Sequence[int]]) -> None:
        """Admit every prompt's chunks, and make sure that lookups of them are full hits."""
        # LMCache's first hash depends on whether vLLM is installed beside it.
        for none_hash in (0, hash_of_seed()):
            hasher = ChunkHasher(HashSpec(none_hash=none_hash))
            self.admit(sorted({key for prompt in prompts for key in hasher.hashes(prompt)}))
            if all(self.lookup(prompt) == len(prompt) for prompt in prompts):
                return
        raise SystemExit(f"{self.name}: {[(len(prompt), self.lookup(prompt)) for prompt in prompts]} are no full hits")

    def _get(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=STARTUP_SECONDS) as answer:
            return json.load(answer)


def hash_of_seed() -> int:
    """What vLLM makes of PYTHONHASHSEED; strings hash alike in processes with the same seed only."""
    code = f"print(hash({HASH_SEED!r}))"
    environment = {**os.environ, "PYTHONHASHSEED": HASH_SEED}
    return int(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout)


@contextmanager
def our_controller(context: zmq.Context[Any]) -> Iterator[Side]:
    """``lmcache-kit controller`` of this environment."""
    command = [sys.executable, "-m", "lmcache_kit", "controller", "--none-hash", "0", "--health-check-interval", "-1"]
    with _started(command, context, "ours") as side:
        yield side


@contextmanager
def peer_controller(python: Path, context: zmq.Context[Any], *, access_log: bool = True) -> Iterator[Side]:
    """LMCache's controller of the environment that ``python`` belongs to; ours writes no line for each request."""
    start = ["-m", "lmcache.v1.api_server"] if access_log else ["-c", _QUIET_PEER]
    with _started([str(python), *start], context, "peer") as side:
        yield side


@contextmanager
def _started(command: list[str], context: zmq.Context[Any], name: str) -> Iterator[Side]:
    """The same flags, environment and way of ending for both."""
    http, pull, reply = _free_ports(3)
    ports = json.dumps({"pull": pull, "reply": reply})
    command = [*command, "--host", "127.0.0.1", "--port", str(http), "--monitor-ports", ports]
    environment = {**os.environ, "PYTHONHASHSEED": HASH_SEED, "LMCACHE_TRACK_USAGE": "false"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        side = None
        try:
            _wait_for_http(process, http, log, name)
            side = Side(name, process.pid, http, pull, reply, context)
            yield side
        finally:
            if side is not None:
                side.close()
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for_http(process: subprocess.Popen[bytes], port: int, log: Any, name: str) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/controller/key-stats", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            raise SystemExit(f"{name} did not start:\n{log.read()[-2000:]}")
        time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    opened = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [server.getsockname()[1] for server in opened]
    finally:
        for server in opened:
            server.close()


def peer_facts(python: Path) -> dict[str, str]:
    """Versions in the peer's environment."""
    answer = subprocess.run([str(python), "-c", _FACTS], capture_output=True, text=True, check=True)
    return dict(json.loads(answer.stdout))
