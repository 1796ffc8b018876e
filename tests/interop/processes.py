"""Processes of tests with real peers: started with a log each, waited for, and ended with all their children."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import httpx

T = TypeVar("T")
PATIENCE = 120.0


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def free_port_row(count: int) -> int:
    """The first of ``count`` ports in a row that nobody listens on."""
    for first in range(20_000, 30_000, count):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise AssertionError("no free ports")


def eventually(check: Callable[[], T], what: str, *, seconds: float = PATIENCE) -> T:
    """The first true answer of ``check``; a peer that cannot be reached is not ready yet."""
    deadline, last = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        try:
            last = check()
        except httpx.HTTPError as error:
            last = repr(error)  # type: ignore[assignment]
        else:
            if last:
                return last
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds:g} s: {what}; last: {last!r}")


class Process:
    """A process in a group of its own."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log = log
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("LMCACHE_")}
        inherited.pop("PYTHONHASHSEED", None)
        with log.open("ab") as file:
            self.child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**inherited, **environment},
                cwd=log.parent,
                start_new_session=True,
            )

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def running(self) -> bool:
        return self.child.poll() is None

    def wait_for(self, check: Callable[[], T], what: str, *, seconds: float = PATIENCE) -> T:
        """As ``eventually``, and a process that ended is not waited for."""

        def alive() -> T:
            assert self.running(), f"{self.name} ended with {self.child.returncode}:\n{self.text()[-3000:]}"
            return check()

        try:
            return eventually(alive, f"{self.name}: {what}", seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.text()[-3000:]}") from None

    def end(self, number: int = signal.SIGTERM, *, seconds: float = 30.0) -> int | None:
        """Signal it, and when it is gone kill what it left; its exit code, None when it had to be killed."""
        with contextlib.suppress(ProcessLookupError):
            self.child.send_signal(number)
        code = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.child.wait(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()
        return code


class Processes:
    """Starts processes in a folder; all of them end with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[Process] = []
        self._clients = contextlib.ExitStack()

    def client(self, url: str) -> httpx.Client:
        """For requests to one of them."""
        return self._clients.enter_context(httpx.Client(base_url=url, timeout=60.0, trust_env=False))

    def start(self, name: str, *command: object, **environment: str) -> Process:
        log = self.folder / f"{name}.{len(self._started)}.log"
        self._started.append(Process(name, [str(part) for part in command], log, environment))
        return self._started[-1]

    def end(self) -> None:
        self._clients.close()
        for process in reversed(self._started):
            process.end(signal.SIGKILL)


@contextlib.contextmanager
def processes_in(folder: Path) -> Iterator[Processes]:
    found = Processes(folder)
    try:
        yield found
    finally:
        found.end()
