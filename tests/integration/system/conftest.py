"""A real controller process and real instance processes, driven over HTTP as a user would."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

DEADLINE = 60.0
CPU, DISK, REMOTE = "LocalCPUBackend", "LocalDiskBackend", "RemoteBackend"
Json = dict[str, Any]


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of ``condition``."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come within {DEADLINE:g} s")


class Process:
    """One ``lmcache-kit`` process. Its stderr goes to a file, in which its ready line is looked for."""

    def __init__(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LMCACHE_")}
        inherited.pop("PYTHONHASHSEED", None)
        self.log = log
        with log.open("ab") as file:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "lmcache_kit", *arguments],
                stdout=file,
                stderr=file,
                cwd=log.parent,
                env={**inherited, **environment},
            )

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def ready(self, pattern: str) -> re.Match[str]:
        """The match of its ready line."""

        def found() -> re.Match[str] | None:
            assert self.child.poll() is None, self.text()
            return re.search(pattern, self.text(), re.MULTILINE)

        return eventually(found, f"the ready line of {self.log.name}")

    def kill(self) -> None:
        """As ``kill -9``."""
        self.end(signal.SIGKILL)

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.child.poll() is None:
            self.child.send_signal(number)
        try:
            return self.child.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            raise


class Instance:
    """A running instance with the synthetic engine, whose text changes with any bit of the KV that it was given."""

    def __init__(self, instance_id: str, process: Process, http: httpx.Client) -> None:
        self.instance_id = instance_id
        self.process = process
        self.http = http

    def complete(self, tokens: Sequence[int], max_tokens: int = 8) -> Json:
        """A greedy completion; the answer's ``lmcache_kit`` object with ``text`` and ``cached_tokens`` beside it."""
        body = {"prompt": list(tokens), "max_tokens": max_tokens, "temperature": 0}
        answer = self.http.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        value = answer.json()
        cached = value["usage"]["prompt_tokens_details"]["cached_tokens"]
        return {**value["lmcache_kit"], "text": value["choices"][0]["text"], "cached_tokens": cached}

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of ``name`` that carry ``labels``."""
        total = 0.0
        for line in self.http.get("/metrics").text.splitlines():
            match = re.fullmatch(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)", line)
            if (
                match
                and match[1] == name
                and all(f'{key}="{value}"' in (match[2] or "") for key, value in labels.items())
            ):
                total += float(match[3])
        return total


class Fleet:
    """One controller and its instances."""

    eventually = staticmethod(eventually)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[Process] = []
        self.clients: list[httpx.Client] = []
        self.ports: dict[str, int] = {}
        self.controller: Process
        self.http: httpx.Client

    def client(self, url: str) -> httpx.Client:
        self.clients.append(httpx.Client(base_url=url, timeout=DEADLINE, trust_env=False))
        return self.clients[-1]

    def start_controller(self, *flags: str, monitor: str | None = None, port: int = 0) -> None:
        where = ["--monitor-ports", monitor] if monitor else ["--monitor-port", "0"]
        log = self.folder / f"controller{len(self.processes)}.log"
        process = Process(["controller", "--port", str(port), *where, *flags], log, {"PYTHONHASHSEED": "123"})
        self.processes.append(process)
        match = process.ready(r"^controller ready http=(\S+):(\d+) (.*)$")
        self.ports = {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", match[3])}
        self.ports["http"] = int(match[2])
        self.controller = process
        self.http = self.client(f"http://127.0.0.1:{match[2]}")

    def start(
        self,
        instance_id: str,
        *,
        own: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        plugins: Sequence[str] = (),
        **keys: Any,
    ) -> Instance:
        """An instance that has joined the controller; ``own`` are our settings, ``keys`` LMCache's."""
        settings = {
            "chunk_size": 16,
            "enable_controller": True,
            "lmcache_instance_id": instance_id,
            "controller_pull_url": f"127.0.0.1:{self.ports['pull']}",
            "controller_reply_url": f"127.0.0.1:{self.ports['reply']}",
            "lmcache_worker_heartbeat_time": 1,
            "extra_config": {"lmcache_kit": {"data_dir": f"data-{instance_id}", **(own or {})}},
            **keys,
        }
        path = self.folder / f"{instance_id}.yaml"
        path.write_text(yaml.safe_dump(settings))
        arguments = [part for module in plugins for part in ("-p", module)]
        arguments += ["serve", "--port", "0", "--model", "m", "--config", str(path)]
        for name, value in {"num_layers": 2, "head_dim": 8, **(options or {})}.items():
            arguments += ["--engine-option", f"{name}={value}"]
        log = self.folder / f"{instance_id}{len(self.processes)}.log"
        process = Process(arguments, log, {"PYTHONHASHSEED": "123", **(environment or {})})
        self.processes.append(process)
        match = process.ready(r"^instance \S+ ready http=(\S+)$")
        instance = Instance(instance_id, process, self.client(f"http://{match[1]}"))
        # An instance starts without its controller; here every test wants both to know each other.
        eventually(
            lambda: (instance.http.get("/health").json()["worker"] or {}).get("synced"), f"the sync of {instance_id}"
        )
        return instance

    def post(self, path: str, status: int = 200, **body: Any) -> Json:
        """The controller's answer."""
        answer = self.http.post(path, json=body)
        assert answer.status_code == status, f"{path} {body}: {answer.status_code} {answer.text}"
        return answer.json()

    def finished(self, answer: Json, status: str = "done") -> Json:
        """The job's state at its end."""

        def ended() -> Json | None:
            state = self.post("/check_finish", event_id=answer["event_id"])
            return state if state["status"] in ("done", "failed") else None

        state: Json = eventually(ended, "the end of the job")
        assert state["status"] == status, state
        return state

    def do(self, path: str, **body: Any) -> Json:
        """An operation and the state at its end."""
        return self.finished(self.post(path, **body))

    def holders(self, tokens: Sequence[int]) -> dict[str, dict[str, int]]:
        """What the controller says: instance -> location -> tokens."""
        holders: dict[str, dict[str, int]] = self.post("/lookup", tokens=list(tokens))["holders"]
        return holders

    def until_held(self, tokens: Sequence[int], expected: Mapping[str, Mapping[str, int]]) -> None:
        """Until a lookup names exactly these holders."""
        try:
            eventually(lambda: self.holders(tokens) == expected, "the holders")
        except AssertionError:
            assert self.holders(tokens) == expected
            raise

    def close(self) -> None:
        """End every process that this fleet started, and see that none of them broke."""
        for process in self.processes:
            process.end()
        for client in self.clients:
            client.close()
        for process in self.processes:
            assert "Traceback" not in process.text(), process.text()


@pytest.fixture
def make_fleet(tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    """Starts controllers; every process is gone after the test."""
    fleets: list[Fleet] = []

    def make(*flags: str) -> Fleet:
        folder = tmp_path / f"fleet{len(fleets)}"
        folder.mkdir()
        fleets.append(Fleet(folder))
        fleets[-1].start_controller(*flags)
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.close()


@pytest.fixture(scope="session")
def shared_controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A controller for the tests that leave it as it was."""
    fleet = Fleet(tmp_path_factory.mktemp("controller"))
    fleet.start_controller("--call-timeout", "2")
    yield fleet
    fleet.close()


@pytest.fixture
def fleet(shared_controller: Fleet, tmp_path: Path) -> Iterator[Fleet]:
    """A controller without instances. Those of the test leave it in good order at the end."""
    fleet = Fleet(tmp_path)
    fleet.controller, fleet.ports = shared_controller.controller, shared_controller.ports
    fleet.http = fleet.client(str(shared_controller.http.base_url))
    assert fleet.post("/query_worker_info", instance_id="all")["worker_infos"] == []
    yield fleet
    fleet.close()
    http = shared_controller.http
    eventually(lambda: http.get("/controller/workers").json()["total_count"] == 0, "the goodbye of every instance")


@dataclass(frozen=True)
class RemoteServer:
    """A running server."""

    port: int
    process: subprocess.Popen[bytes]


@pytest.fixture
def remote_server(tmp_path: Path) -> Iterator[RemoteServer]:
    """A real Valkey or Redis server."""
    program = next((found for name in ("valkey-server", "redis-server") if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("needs valkey-server or redis-server on PATH")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--save", ""]
    server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        assert server.poll() is None
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as channel:
                channel.sendall(b"PING\r\n")
                return channel.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    try:
        eventually(answers, "the server")
        yield RemoteServer(port, server)
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def remote_url(remote_server: RemoteServer) -> str:
    return f"redis://127.0.0.1:{remote_server.port}"
