"""A real S3 server: moto's, in a process of its own, on a free port."""

from __future__ import annotations

import http.client
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

NEEDED = ("lmcache_kit_fsspec", "s3fs", "moto", "flask", "flask_cors")
# Any pair will do, for the server checks none. Values that a report would show when it showed secrets.
KEY, SECRET = "KEY-THAT-MUST-NOT-BE-SHOWN", "SECRET-THAT-MUST-NOT-BE-SHOWN"

# Moto wants to see a signature and does not look at it.
_SIGNATURE = "AWS4-HMAC-SHA256 Credential=k/20200101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
PAGE = 20
"""Objects that the server lists at a time; S3 itself lists 1000."""


class Server:
    """One server process; ``kill`` is kill -9 and loses what it held, ``start`` brings it back on the same port."""

    def __init__(self, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def options(self) -> dict[str, object]:
        """Options of the plugin for the bucket ``bucket``."""
        return {
            "url": "s3://bucket/pre/fix",
            "storage_options": {"endpoint_url": self.url, "client_kwargs": {"region_name": "us-east-1"}},
            "secrets": {"key": "TEST_S3_KEY", "secret": "TEST_S3_SECRET"},
            "timeout": 30.0,
        }

    def start(self) -> None:
        assert self._process is None
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
                stdout=log,
                stderr=log,
                env={**os.environ, "MOTO_S3_DEFAULT_MAX_KEYS": str(PAGE)},
            )
        deadline = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                pytest.fail(f"the server did not come up: {self._log.read_text()[-1000:]}")
            time.sleep(0.05)
        assert self.ask("PUT", "/bucket")[0] == 200

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body of one HTTP exchange, past every S3 client."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body=body, headers={"Authorization": _SIGNATURE})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def log(self) -> str:
        """What it was asked, a line each."""
        return self._log.read_text()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()  # a stopped process takes SIGKILL too
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            return self.ask("GET", "/")[0] == 200
        except OSError:
            return False


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for tests that leave it running."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs an S3 server: {', '.join(missing)} not installed; pip install 'lmcache-kit-fsspec[dev]'")
    server = Server(tmp_path_factory.mktemp("s3") / "server.log")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def s3_server(shared_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server, running again after the test, with an empty bucket when the test killed it."""
    monkeypatch.setenv("TEST_S3_KEY", KEY)
    monkeypatch.setenv("TEST_S3_SECRET", SECRET)
    yield shared_server
    if shared_server._process is None:
        shared_server.start()
