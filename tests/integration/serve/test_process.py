"""``lmcache-kit serve`` as a real process: readiness, signals, crashes, a port in use."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

DEADLINE = 60
PROMPT = "All happy families are alike; each unhappy family is unhappy in its own way. " * 5


class Process:
    """A running ``serve``, with its address and what it wrote to stderr."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LMCACHE_")}
        self.child = subprocess.Popen(
            [sys.executable, "-m", "lmcache_kit", "serve", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**inherited, **environment},
        )
        self.lines: list[str] = []
        self.ready = threading.Event()
        self.url = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.child.stderr is not None
        for line in self.child.stderr:
            self.lines.append(line)
            match = re.fullmatch(r"instance \S+ ready http=(\S+)\n", line)
            if match:
                self.url = f"http://{match[1]}"
                self.ready.set()
        self.ready.set()

    def wait_ready(self) -> Process:
        assert self.ready.wait(DEADLINE)
        assert self.url, "".join(self.lines)
        return self

    def complete(self, **body: Any) -> dict[str, Any]:
        values = {"prompt": PROMPT, "temperature": 0, "max_tokens": 12, **body}
        answer = httpx.post(f"{self.url}/v1/completions", json=values, timeout=DEADLINE, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def end(self, number: int | None = None) -> int:
        if number is not None:
            self.child.send_signal(number)
        code = self.child.wait(DEADLINE)
        self._reader.join(DEADLINE)
        for stream in (self.child.stdout, self.child.stderr):
            assert stream is not None
            stream.close()
        return code


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Process] = []

    def begin(*arguments: str, config: str = "chunk_size: 64\nlocal_cpu: true\n", **environment: str) -> Process:
        file = tmp_path / "instance.yaml"
        file.write_text(config)
        started.append(Process([*arguments, "--config", str(file)], environment))
        return started[-1]

    yield begin
    for process in started:
        if process.child.poll() is None:
            process.end(signal.SIGKILL)


def test_it_serves_until_it_is_told_to_stop(start: Start) -> None:
    process = start("--engine", "synthetic", "--model", "m", "--served-model-name", "a", "--served-model-name", "b")
    process.wait_ready()
    first, second = process.complete(model="a"), process.complete(model="b")
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == len(PROMPT)
    assert second["choices"] == first["choices"]
    refused = httpx.post(f"{process.url}/tokenize", json={"model": "m", "prompt": "x"}, trust_env=False)
    assert refused.status_code == 404
    assert process.end(signal.SIGTERM) == 0
    assert "Traceback" not in "".join(process.lines)


def test_the_same_text_from_another_process(start: Start) -> None:
    first = start("m").wait_ready()
    text = first.complete()["choices"]
    assert first.end(signal.SIGINT) == 0
    assert start("m").wait_ready().complete()["choices"] == text


def test_the_flags_of_the_documents(start: Start, tmp_path: Path) -> None:
    process = start(
        "meta-llama/Llama-3.1-8B-Instruct",
        *("--max-model-len", "4096", "--gpu-memory-utilization", "0.8"),
        *("--kv-transfer-config", '{"kv_connector":"LMCacheConnectorV1", "kv_role":"kv_both"}'),
    ).wait_ready()
    answer = process.complete(model="meta-llama/Llama-3.1-8B-Instruct")
    assert answer["model"] == "meta-llama/Llama-3.1-8B-Instruct"
    tokens = httpx.post(f"{process.url}/tokenize", json={"prompt": "x"}, trust_env=False).json()
    assert tokens["max_model_len"] == 4096
    log = "".join(process.lines)
    assert "--kv-transfer-config has no effect" in log
    assert "--gpu-memory-utilization has no effect" in log


def test_requests_under_way_do_not_hold_up_the_shutdown_for_long(start: Start) -> None:
    process = start("m", "--engine-option", "decode_seconds=0.1").wait_ready()
    body = {"prompt": "x", "max_tokens": 2000, "stream": True}
    with (
        httpx.Client(trust_env=False, timeout=DEADLINE) as http,
        http.stream("POST", f"{process.url}/v1/completions", json=body) as answer,
    ):
        next(answer.iter_lines())
        process.child.send_signal(signal.SIGTERM)
        # 2000 tokens would take 200 seconds.
        assert process.child.wait(DEADLINE) == 0
    assert process.end() == 0


def test_the_disk_tier_survives_a_kill(start: Start, tmp_path: Path) -> None:
    config = f"chunk_size: 64\nlocal_cpu: false\nlocal_disk: file://{tmp_path}/kv\nmax_local_disk_size: 1\n"
    process = start("m", config=config).wait_ready()
    first = process.complete()
    assert first["lmcache_kit"]["stored_tokens"] == len(PROMPT) + 1
    assert process.end(signal.SIGKILL) == -signal.SIGKILL
    again = start("m", config=config).wait_ready().complete()
    assert again["lmcache_kit"]["cached_tokens_by_location"] == {"LocalDiskBackend": len(PROMPT)}
    assert again["choices"] == first["choices"]


def test_a_port_in_use_names_the_flag(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start("m", "--port", str(port))
        assert process.end() == 2
    assert f"port {port} on 127.0.0.1 is in use" in "".join(process.lines)
    assert "--port" in "".join(process.lines)


@pytest.mark.parametrize("key", ["lmcache_worker_ports", "p2p_init_ports"])
def test_a_port_of_the_configuration_in_use_names_the_key(start: Start, key: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = (
            "enable_controller: true\nlmcache_instance_id: a\ncontroller_pull_url: localhost:9\np2p_host: 127.0.0.1\n"
            f"{key}: {port}\n"
        )
        process = start("m", config=config)
        assert process.end() == 2
    shown = "".join(process.lines)
    assert "in use" in shown
    assert str(port) in shown
    assert key in shown
    assert "Traceback" not in shown


def test_the_configuration_may_come_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "example.yaml"
    file.write_text("chunk_size: 32\nlmcache_instance_id: from_environment\n")
    process = Process(["m"], {"LMCACHE_CONFIG_FILE": str(file)})
    try:
        process.wait_ready()
        health = httpx.get(f"{process.url}/health", trust_env=False).json()
        assert health["instance_id"] == "from_environment"
        assert health["chunk_size"] == 32
    finally:
        assert process.end(signal.SIGTERM) == 0
