"""The backend keeps the contract, on a server of its own."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmcache_kit.testing import StorageBackendTests

PROGRAMS = ("valkey-server", "redis-server")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as channel:
            channel.sendall(b"PING\r\n")
            return channel.recv(64).startswith(b"+PONG")
    except OSError:
        return False


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"needs a real server: none of {', '.join(PROGRAMS)} is on PATH")
    folder: Path = tmp_path_factory.mktemp("server")
    port = free_port()
    arguments = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    with subprocess.Popen([program, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 30
            while not answers(port):
                assert process.poll() is None, "the server ended by itself"
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.02)
            yield f"valkey://127.0.0.1:{port}/0"
        finally:
            process.kill()


class TestValkey(StorageBackendTests):
    @pytest.fixture
    def plugin(self):
        return "valkey"

    @pytest.fixture
    def options(self, server_url: str):
        return {"url": server_url}

    @pytest.fixture
    def unreachable(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
            yield {"url": f"valkey://127.0.0.1:{taken.getsockname()[1]}/0"}
