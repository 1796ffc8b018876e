"""A controller and two instances as real processes with something in them, and a client that sends raw bytes."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

DEADLINE = 60.0
CPU, DISK = "LocalCPUBackend", "LocalDiskBackend"
PROMPT = [(7 * number) % 250 for number in range(64)]


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of ``condition``."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come within {DEADLINE:g} s")


@dataclass
class Process:
    """One ``lmcache-kit`` process that serves HTTP at ``host:port``."""

    name: str
    child: subprocess.Popen[bytes]
    log: Path
    port: int = 0
    ports: dict[str, int] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def resident(self) -> int:
        """Bytes of memory that it holds."""
        pages = int(Path(f"/proc/{self.child.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def open_files(self) -> int:
        """Descriptors that it holds."""
        return len(os.listdir(f"/proc/{self.child.pid}/fd"))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE)

    def exchange(self, data: bytes, *, end: bool = True) -> bytes:
        """Everything that it answers to ``data`` until it closes; ``end`` says that nothing more will be sent."""
        with self.connect() as connection:
            # It may answer and close before it has read everything.
            with contextlib.suppress(ConnectionError):
                connection.sendall(data)
                if end:
                    connection.shutdown(socket.SHUT_WR)
            received = bytearray()
            with contextlib.suppress(ConnectionError):
                while part := connection.recv(65536):
                    received += part
            return bytes(received)

    def still_serves(self) -> None:
        """It lives, and answers as if nothing had happened."""
        assert self.child.poll() is None, self.text()
        assert httpx.get(f"{self.url}/health", timeout=DEADLINE, trust_env=False).status_code == 200


@dataclass
class Surface:
    """The processes, all started with little to take: bodies of 1 MiB at most for the controller."""

    controller: Process
    instances: list[Process]

    eventually = staticmethod(eventually)

    @property
    def all(self) -> list[Process]:
        return [self.controller, *self.instances]

    def fill(self) -> None:
        """See to it that chunks, pins and a finished job are there."""
        for instance in self.instances:
            body = {"prompt": PROMPT, "max_tokens": 2, "temperature": 0}
            httpx.post(f"{instance.url}/v1/completions", json=body, timeout=DEADLINE, trust_env=False)
        with httpx.Client(base_url=self.controller.url, timeout=DEADLINE, trust_env=False) as http:
            eventually(
                lambda: len(http.post("/lookup", json={"tokens": PROMPT}).json()["prefix"]) == 2, "the chunks' holders"
            )
            pin = {"instance_id": "a", "location": CPU, "tokens": PROMPT[:16]}
            assert http.post("/pin", json=pin).status_code == 200
            job = {"instance_id": "b", "method": "zstd", "location": DISK, "tokens": PROMPT}
            assert http.post("/compress", json=job).status_code == 200


def start(arguments: Sequence[str], folder: Path, name: str, ready: str, environment: Mapping[str, str]) -> Process:
    log = folder / f"{name}.log"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("LMCACHE_")}
    with log.open("wb") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "lmcache_kit", *arguments],
            stdout=file,
            stderr=file,
            cwd=folder,
            env={**inherited, "PYTHONHASHSEED": "123", **environment},
        )
    process = Process(name, child, log)

    def found() -> re.Match[str] | None:
        assert child.poll() is None, process.text()
        return re.search(ready, process.text(), re.MULTILINE)

    match = eventually(found, f"the ready line of {name}")
    process.ports = {key: int(value) for key, value in re.findall(r"(\w+)=(?:\S+:)?(\d+)", match[0])}
    process.port = process.ports["http"]
    return process


@pytest.fixture(scope="session")
def surface(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Surface]:
    """The processes; at the end each must have survived, with no traceback in its log."""
    folder = tmp_path_factory.mktemp("surface")
    started: list[Process] = []
    try:
        flags = ["controller", "--port", "0", "--monitor-port", "0", "--max-body-size", "1MiB", "--call-timeout", "5"]
        controller = start(flags, folder, "controller", r"^controller ready http=\S+ .*$", {})
        started.append(controller)
        for name in ("a", "b"):
            settings = {
                "chunk_size": 16,
                "local_cpu": True,
                "max_local_cpu_size": 0.01,
                "local_disk": f"disk-{name}",
                "max_local_disk_size": 0.01,
                "enable_controller": True,
                "lmcache_instance_id": name,
                "controller_pull_url": f"127.0.0.1:{controller.ports['pull']}",
                "controller_reply_url": f"127.0.0.1:{controller.ports['reply']}",
                "lmcache_worker_heartbeat_time": 1,
                "extra_config": {"lmcache_kit": {"data_dir": f"data-{name}"}},
            }
            path = folder / f"{name}.yaml"
            path.write_text(yaml.safe_dump(settings))
            arguments = ["serve", "--port", "0", "--model", "m", "--config", str(path), "--max-model-len", "2048"]
            arguments += ["--engine-option", "num_layers=2", "--engine-option", "head_dim=8"]
            started.append(start(arguments, folder, name, r"^instance \S+ ready http=\S+$", {}))
        made = Surface(controller, started[1:])
        made.fill()
        yield made
        for process in started:
            process.still_serves()
    finally:
        for process in started:
            process.child.terminate()
        for process in started:
            process.child.wait(DEADLINE)
    for process in started:
        assert "Traceback" not in process.text(), process.text()
