"""A real Valkey or Redis server per test: a process of its own, a free port, a temporary folder."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAMS = ("valkey-server", "redis-server")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One server process; ``kill`` is kill -9, ``start`` brings it back on the same port with the same folder."""

    def __init__(self, program: str, folder: Path, *arguments: str) -> None:
        self.port = free_port()
        self.socket_path = folder / "server.sock"
        self._log = folder / "server.log"
        self._argv = [
            *(program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""),
            *("--unixsocket", str(self.socket_path), "--logfile", str(self._log), *arguments),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        assert self._process is None
        self._process = subprocess.Popen(self._argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                pytest.fail(f"the server did not come up: {self._log.read_text()[-1000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        if self._process is not None:
            # A stopped process takes SIGKILL too.
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as channel:
            channel.sendall(b"PING\r\n")
            return channel.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        return False


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers with more arguments; all of them are gone after the test."""
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"needs a real server: none of {', '.join(PROGRAMS)} is on PATH")
    servers: list[Server] = []

    def make(*arguments: str) -> Server:
        folder = tmp_path / f"server{len(servers)}"
        folder.mkdir()
        server = Server(program, folder, *arguments)
        servers.append(server)
        server.start()
        return server

    yield make
    for server in servers:
        server.kill()


@pytest.fixture
def valkey_server(make_server: Callable[..., Server]) -> Server:
    """A running server; ``url``, ``kill()``, ``start()``."""
    return make_server()
