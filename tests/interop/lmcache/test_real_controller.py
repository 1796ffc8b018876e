"""Our instances on the real, unmodified lmcache_controller 0.5.6, with what is broken in it as it is."""

from __future__ import annotations

import signal
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
import zmq

PROMPT = "All happy families are alike; each unhappy family is unhappy in its own way. " * 9
HELD = (len(PROMPT) + 1) // 256 * 256


@pytest.fixture(scope="module")
def controller(peers: ModuleType, module_processes: Any, lmcache_env: Any) -> Any:
    return peers.real_controller(module_processes, lmcache_env, peers.Ports())


@pytest.fixture(scope="module")
def instance(peers: ModuleType, module_processes: Any, controller: Any) -> Any:
    return peers.OurInstance(module_processes, controller.ports, "ours")


@pytest.fixture
def stored(peers: ModuleType, controller: Any, instance: Any) -> list[int]:
    """Tokens of which the instance's memory holds all, as far as the controller can see (whole chunks of 256)."""
    instance.complete(PROMPT)
    tokens = list(instance.tokens(PROMPT))
    peers.eventually(lambda: seen(controller, tokens, "ours")[1] >= HELD, "the controller finds it")
    return tokens


def seen(controller: Any, tokens: list[int], instance: str) -> list[Any]:
    return list(controller.held(tokens).get(instance, ["", 0]))


def where(peers: ModuleType) -> dict[str, Any]:
    return {"instance_id": "ours", "location": peers.CPU}


@pytest.mark.exercises("our instance -> real controller: register, heartbeat, query_worker_info")
def test_it_registers_and_its_heartbeats_arrive(controller: Any, instance: Any, peers: ModuleType) -> None:
    peers.eventually(lambda: controller.worker("ours"), "registered")
    info = controller.worker("ours")
    assert info["worker_id"] == 0
    assert info["port"] == instance.settings["lmcache_worker_ports"][0]
    assert info["peer_init_url"] == f"tcp://127.0.0.1:{instance.settings['p2p_init_ports'][0]}"
    before = info["last_heartbeat_time"]
    peers.eventually(lambda: controller.worker("ours")["last_heartbeat_time"] > before, "another heartbeat")


@pytest.mark.exercises("our instance -> real controller: admit, full sync when it asks (after its start)")
def test_its_chunks_are_found(controller: Any, stored: list[int], peers: ModuleType, instance: Any) -> None:
    assert seen(controller, stored, "ours") == [peers.CPU, len(stored)]
    # A fresh controller asks everyone for everything, and says so in its log.
    peers.eventually(lambda: "Full sync completed for worker ('ours', 0)" in controller.process.text(), "synced")
    assert seen(controller, stored, "ours") == [peers.CPU, len(stored)]


@pytest.mark.exercises("our instance -> real controller: health")
def test_it_is_healthy(controller: Any, instance: Any, peers: ModuleType) -> None:
    assert controller.done("/health", instance_id="ours")["error_codes"] == {"0": 0}


@pytest.mark.exercises("our client commands -> real controller: status, lookup, pin, compress, health")
def test_the_client_commands(controller: Any, stored: list[int], instance: Any, peers: ModuleType) -> None:
    tokens = ",".join(map(str, stored))
    tier = ["--instance-id", "ours", "--location", peers.CPU]
    assert "ours" in ran(controller, "status")
    assert f"{len(stored)}" in ran(controller, "lookup", "--tokens", tokens)
    assert f"{len(stored)}" in ran(controller, "pin", *tier, "--tokens", tokens)
    # It cannot tell how a job goes.
    assert "num_tokens" in ran(controller, "compress", *tier, "--method", "zstd", "--tokens", tokens, "--no-wait")
    peers.eventually(
        lambda: instance.complete(PROMPT)["lmcache_kit"]["codecs"].keys() == {"zstd"}, "all are compressed"
    )
    ran(controller, "decompress", *tier, "--method", "zstd", "--tokens", tokens, "--no-wait")
    peers.eventually(
        lambda: instance.complete(PROMPT)["lmcache_kit"]["codecs"].keys() == {"naive"}, "none is compressed"
    )
    assert "healthy" in ran(controller, "health", "--instance-id", "ours")


def ran(controller: Any, *command: str) -> str:
    url = f"http://127.0.0.1:{controller.ports.http}"
    done = subprocess.run(
        [sys.executable, "-m", "lmcache_kit", *command, "--url", url], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.exercises("our instance -> real controller: compress, decompress (zstd), read in between")
def test_compress_and_decompress(controller: Any, stored: list[int], peers: ModuleType, instance: Any) -> None:
    job = {**where(peers), "method": "zstd", "tokens": stored}
    before = instance.complete(PROMPT)
    assert controller.done("/compress", **job)["num_tokens"] == len(stored)
    peers.eventually(
        lambda: instance.complete(PROMPT)["lmcache_kit"]["codecs"].keys() == {"zstd"}, "all are compressed"
    )
    assert instance.complete(PROMPT)["choices"] == before["choices"]
    # There it answers 500 and the chunks stay pinned; here it is nothing to do.
    assert controller.done("/compress", **job)["num_tokens"] >= 0
    assert controller.done("/decompress", **job)["num_tokens"] == len(stored)
    peers.eventually(
        lambda: instance.complete(PROMPT)["lmcache_kit"]["codecs"].keys() == {"naive"}, "none is compressed"
    )


@pytest.mark.exercises("our instance -> real controller: an error of ours is 500 there, its text lost; we go on")
def test_errors_do_no_harm(controller: Any, stored: list[int], peers: ModuleType, instance: Any) -> None:
    refused = controller.post("/compress", **where(peers), method="nothing-of-the-kind", tokens=stored)
    # It reads num_tokens of whatever answer comes.
    assert (refused.status_code, refused.json()) == (500, {"detail": "Operation 'compress' is not supported."})
    assert controller.post("/check_finish", event_id="any").status_code == 500
    assert controller.done("/health", instance_id="ours")["error_codes"] == {"0": 0}


@pytest.mark.exercises("our instance -> real controller: pin, clear, evict")
def test_pin_and_clear(controller: Any, stored: list[int], peers: ModuleType, instance: Any) -> None:
    assert controller.done("/pin", **where(peers), tokens=stored)["num_tokens"] == len(stored)
    other = "Call me Ishmael. Some years ago, never mind how long precisely. " * 9
    instance.complete(other)
    tokens = instance.tokens(other)
    peers.eventually(lambda: seen(controller, tokens, "ours") == [peers.CPU, len(tokens)], "the other prompt")
    assert controller.done("/clear", **where(peers))["num_tokens"] >= len(tokens)
    peers.eventually(lambda: seen(controller, tokens, "ours") == ["", 0], "cleared")
    # What is pinned stays: LMCache has no unpin, ours expires as LMCache's does.
    assert seen(controller, stored, "ours")[1] == len(stored)


@pytest.mark.exercises("two of our instances -> real controller: copy and move between them")
def test_move_between_two(peers: ModuleType, processes: Any, controller: Any, instance: Any, stored: list[int]) -> None:
    second = peers.OurInstance(processes, controller.ports, "second")
    peers.eventually(lambda: controller.worker("second"), "registered")
    positions = {"old_position": ["ours", peers.CPU], "new_position": ["second", peers.CPU], "tokens": stored}
    assert controller.done("/move", **positions, should_copy=True)["num_tokens"] == len(stored)
    first = instance.complete(PROMPT)
    peers.eventually(
        lambda: second.complete(PROMPT)["lmcache_kit"]["cached_tokens_by_location"].get(peers.CPU, 0) >= HELD, "copied"
    )
    assert second.complete(PROMPT)["choices"] == first["choices"]


@pytest.mark.exercises("our instance -> real controller: killed and started again, everything is found again")
def test_a_restarted_controller_learns_everything_again(peers: ModuleType, processes: Any, lmcache_env: Any) -> None:
    controller = peers.real_controller(processes, lmcache_env, peers.Ports())
    ours = peers.OurInstance(processes, controller.ports, "ours")
    ours.complete(PROMPT)
    tokens = ours.tokens(PROMPT)
    peers.eventually(lambda: seen(controller, tokens, "ours") == [peers.CPU, len(tokens)], "found")
    controller.end()
    # Nobody waits for the controller.
    assert ours.complete(PROMPT)["usage"]["prompt_tokens_details"]["cached_tokens"] >= HELD
    later = "It was the best of times, it was the worst of times. " * 12
    ours.complete(later)
    controller.start()
    for prompt in (PROMPT, later):
        tokens = ours.tokens(prompt)
        peers.eventually(lambda tokens=tokens: seen(controller, tokens, "ours") == [peers.CPU, len(tokens)], "again")
    assert controller.done("/pin", **where(peers), tokens=tokens)["num_tokens"] == len(tokens)


@pytest.mark.exercises("our instance -> real controller: one malformed frame stops its admits, a restart heals ours")
def test_a_malformed_frame(peers: ModuleType, processes: Any, lmcache_env: Any) -> None:
    controller = peers.real_controller(processes, lmcache_env, peers.Ports())
    ours = peers.OurInstance(processes, controller.ports, "ours")
    peers.eventually(lambda: "Full sync completed" in controller.process.text(), "synced")
    with zmq.Context() as context, context.socket(zmq.PUSH) as stranger:
        stranger.connect(f"tcp://127.0.0.1:{controller.ports.pull}")
        stranger.send(b"\xc1")
    # Frames of two senders may overtake each other: this one comes by the same way, after it.
    peers.eventually(lambda: pulled(controller) >= 1, "the frame arrived")
    ours.complete(PROMPT)
    tokens = ours.tokens(PROMPT)
    before = ours.client.get("/health").json()
    assert before["instance_id"] == "ours"
    assert controller.held(tokens) == {}
    controller.end()
    controller.start()
    peers.eventually(lambda: seen(controller, tokens, "ours") == [peers.CPU, len(tokens)], "found")


def pulled(controller: Any) -> int:
    text = controller.client.get("/metrics").text
    name = "pull_socket_message_count"
    return int(sum(float(line.split()[-1]) for line in text.splitlines() if name in line and line[0] != "#"))


@pytest.mark.exercises(
    "our instance -> real controller with --monitor-port: it ignores the port (8300, 8400, no heartbeats)"
)
def test_one_monitor_port(peers: ModuleType, processes: Any, lmcache_env: Any) -> None:
    ports = peers.Ports(single=True)
    controller = peers.real_controller(processes, lmcache_env, ports)
    urls = {"controller_pull_url": None, "controller_reply_url": None}
    nowhere = peers.OurInstance(processes, ports, "nowhere", **urls, controller_url=f"127.0.0.1:{ports.pull}")
    urls = {"controller_pull_url": "127.0.0.1:8300", "controller_reply_url": "127.0.0.1:8400"}
    there = peers.OurInstance(processes, ports, "there", **urls)
    there.complete(PROMPT)
    tokens = there.tokens(PROMPT)
    peers.eventually(lambda: seen(controller, tokens, "there") == [peers.CPU, len(tokens)], "found")
    # Heartbeats go to the reply socket when there is none for them.
    before = controller.worker("there")["last_heartbeat_time"]
    peers.eventually(lambda: controller.worker("there")["last_heartbeat_time"] > before, "another heartbeat")
    # The one that believed the flag serves alone, and says that it does.
    nowhere.complete(PROMPT)
    assert nowhere.complete(PROMPT)["usage"]["prompt_tokens_details"]["cached_tokens"] >= HELD
    peers.eventually(lambda: "not registered" in nowhere.process.text(), "it says so")
    assert controller.worker("nowhere") is None
    assert nowhere.process.end(signal.SIGTERM) == 0


@pytest.mark.exercises("our instance -> real controller: deregisters when it is stopped, killed it stays there")
def test_leaving(peers: ModuleType, processes: Any, controller: Any) -> None:
    leaver = peers.OurInstance(processes, controller.ports, "leaver")
    peers.eventually(lambda: controller.worker("leaver"), "registered")
    assert leaver.process.end(signal.SIGTERM) == 0
    peers.eventually(lambda: controller.worker("leaver") is None, "gone")


@pytest.mark.exercises("our instance -> real controller: a chunk size other than 256 is never found there")
def test_another_chunk_size(peers: ModuleType, processes: Any, controller: Any) -> None:
    small = peers.OurInstance(processes, controller.ports, "small", chunk_size=64)
    prompt = "In a hole in the ground there lived something. " * 12
    small.complete(prompt)
    tokens = small.tokens(prompt)
    peers.eventually(lambda: small.client.get("/health").json()["worker"]["synced"], "synced")
    peers.eventually(lambda: keys_of(controller, "small") >= len(tokens) // 64, "its chunks are known there")
    assert seen(controller, tokens, "small") == ["", 0]
    assert small.complete(prompt)["usage"]["prompt_tokens_details"]["cached_tokens"] > 256


def keys_of(controller: Any, instance: str) -> int:
    """Chunks that the controller counts for an instance."""
    answer = controller.client.get("/controller/workers", params={"instance_id": instance})
    assert answer.status_code == 200, answer.text
    return sum(worker["key_count"] for worker in answer.json()["workers"])
