"""Two vLLM servers at the same time: a Redis or Valkey server behind both, and moves between them."""

from __future__ import annotations

import shutil
import signal
import socket
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

CHUNK = 128


class RemoteServer:
    """A Redis or Valkey server without a disk; ``start`` brings it back on the same port."""

    def __init__(self, processes: Any, program: str, port: int) -> None:
        self.processes, self.program, self.port = processes, program, port
        self.start()

    def start(self) -> None:
        command = [self.program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self.process = self.processes.start("remote", *command)
        self.process.wait_for(self.answers, "an answer")

    def command(self, *words: str) -> bytes:
        text = f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as channel:
            channel.sendall(text.encode())
            return channel.recv(65536)

    def answers(self) -> bool:
        try:
            return self.command("PING").startswith(b"+PONG")
        except OSError:
            return False

    def size(self) -> int:
        """How many keys it has."""
        return int(self.command("DBSIZE").strip().removeprefix(b":"))

    def signal(self, number: int) -> None:
        self.process.child.send_signal(number)

    def kill(self) -> None:
        self.process.end(signal.SIGKILL)


@pytest.fixture(scope="module")
def remote(module_processes: Any, load_module: Callable[[str], ModuleType]) -> RemoteServer:
    program = next((found for name in ("valkey-server", "redis-server") if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("needs valkey-server or redis-server on PATH")
    [port] = load_module("processes").free_ports(1)
    return RemoteServer(module_processes, program, port)


@pytest.fixture(scope="module")
def pair(module_start: Any, remote: RemoteServer) -> Any:
    """``one``, ``two`` and their ``controller``."""
    controller = module_start.controller("--call-timeout", "5")
    begun = {}
    for name in ("one", "two"):
        configuration = module_start.configuration(
            name,
            {"transport": {"kind": "zmq"}},
            chunk_size=CHUNK,
            local_cpu=True,
            max_local_cpu_size=1.0,
            remote_url=f"redis://127.0.0.1:{remote.port}",
            blocking_timeout_secs=2,
            p2p_host="127.0.0.1",
            p2p_init_ports=0,
            **controller.configuration(name),
        )
        begun[name] = module_start.begin(configuration, "--no-enable-prefix-caching")
    for name, server in begun.items():
        server.wait_until_ready()
        controller.until_joined(name)
    return SimpleNamespace(**begun, controller=controller)


@pytest.mark.exercises("vLLM, two engines: one computes a prefix, the other loads it from redis://")
def test_remote_tier(vllm_env: Any, pair: Any, servers: Any, prompts: Any, expected: dict[str, list[int]]) -> None:
    prompt = prompts.CATALOG["remote"]
    cold = pair.one.complete(prompt, 16)
    pair.controller.until_held(prompt, "one", servers.REMOTE, 600)
    warm = pair.two.complete(prompt, 16)
    assert cold.tokens == warm.tokens == expected["remote"][:16]
    assert [cold.cached, warm.cached] == [0, 599]
    assert warm.said["cached_tokens_by_location"] == {servers.REMOTE: 599}


@pytest.mark.exercises("vLLM: clients that hang up in the middle of a load; a remote server that does not answer")
def test_frozen_server(
    vllm_env: Any, pair: Any, remote: RemoteServer, servers: Any, prompts: Any, expected: dict[str, list[int]]
) -> None:
    prompt, other = prompts.CATALOG["frozen"], prompts.CATALOG["batch 1"]
    assert pair.one.complete(prompt, 16).tokens == expected["frozen"][:16]
    pair.controller.until_held(prompt, "one", servers.REMOTE, 500)
    remote.signal(signal.SIGSTOP)
    try:
        # These wait for the remote server when their clients leave.
        for _ in range(3):
            pair.two.abandon(prompt, after=0.2)
        # The engine goes on meanwhile, and this one is computed in the end.
        waiting = pair.two.complete(prompt, 16)
        assert pair.two.complete(other, 16).tokens == expected["batch 1"][:16]
        assert waiting.tokens == expected["frozen"][:16]
        assert waiting.cached == 0
    finally:
        remote.signal(signal.SIGCONT)
    assert pair.two.until_metric("lmcache_kit_tier_pinned", lambda value: value == 0) == 0
    assert pair.two.metric("vllm:num_requests_running") == 0
    again = pair.two.complete(prompt, 16)
    assert again.tokens == expected["frozen"][:16]
    assert again.cached == 499


@pytest.mark.exercises("vLLM: the Redis or Valkey server is killed under load, and comes back")
def test_killed_server(
    vllm_env: Any, pair: Any, remote: RemoteServer, servers: Any, prompts: Any, expected: dict[str, list[int]]
) -> None:
    names = [name for name in prompts.CATALOG if name.startswith("load")]
    asked = [prompts.CATALOG[name] for name in names]
    with servers.Background(pair.one, asked) as one, servers.Background(pair.two, asked) as two:
        one.more(3)
        remote.kill()
        one.more(8)
        two.more(8)
        while_away = pair.one.complete(prompts.CATALOG["batch 2"], 16)
    for load in (one, two):
        assert load.errors == []
        wanted = [expected[names[index]][:8] for index, _ in load.answers]
        assert [answer.tokens for _, answer in load.answers] == wanted
    assert while_away.tokens == expected["batch 2"][:16]
    pair.one.until_metric("lmcache_kit_tier_available", lambda value: value == 0, location=servers.REMOTE)
    assert pair.one.metric("lmcache_kit_store_errors_total") > 0
    remote.start()
    fresh = prompts.CATALOG["batch 3"]

    def shared() -> bool:
        """Whether what one engine stores arrives again; it may leave the server alone for a while."""
        pair.one.complete([*fresh, 7], 1)
        return remote.size() > 0

    pair.one.until(shared, "chunks in the server that came back")
    pair.one.until_metric("lmcache_kit_tier_available", lambda value: value == 1, location=servers.REMOTE)


@pytest.mark.exercises("vLLM, two engines: /move over our transport")
def test_move(vllm_env: Any, pair: Any, servers: Any, prompts: Any, expected: dict[str, list[int]]) -> None:
    prompt = prompts.CATALOG["moved"]
    assert pair.one.complete(prompt, 16).tokens == expected["moved"][:16]
    pair.controller.until_held(prompt, "one", servers.CPU, 600)
    positions = {"old_position": ["one", servers.CPU], "new_position": ["two", servers.CPU]}
    moved = pair.controller.do("/move", **positions, tokens=prompt, should_copy=False)
    assert moved["tokens_done"] == 600
    pair.controller.until_held(prompt, "two", servers.CPU, 600)
    warm = pair.two.complete(prompt, 16)
    assert warm.tokens == expected["moved"][:16]
    assert warm.cached == 599
    assert warm.said["cached_tokens_by_location"] == {servers.CPU: 599}
    holders = pair.controller.holders(prompt)
    assert servers.CPU not in holders.get("one", {})
