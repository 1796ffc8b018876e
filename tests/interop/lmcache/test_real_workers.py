"""Real, unmodified LMCache 0.5.6 workers on our controller, with what is broken in them as it is."""

from __future__ import annotations

import signal
import time
from types import ModuleType
from typing import Any

import pytest

FIRST, LAST = 1000, 1600
TOKENS = list(range(FIRST, LAST))
WHOLE = 512
"""LMCache leaves the last, partial chunk out."""


@pytest.fixture(scope="module")
def controller(peers: ModuleType, module_processes: Any) -> Any:
    return peers.our_controller(module_processes, peers.Ports(single=True))


@pytest.fixture(scope="module")
def worker(peers: ModuleType, module_processes: Any, lmcache_env: Any, controller: Any) -> Any:
    """One for all tests that leave it as it was."""
    return peers.RealWorker(
        module_processes,
        lmcache_env,
        controller.ports,
        "real",
        local_disk=f"file://{module_processes.folder}/disk/",
        max_local_disk_size=1,
    )


@pytest.fixture
def stored(peers: ModuleType, controller: Any, worker: Any) -> Any:
    """The worker, holding ``TOKENS`` in both of its tiers."""
    worker.store(FIRST, LAST)
    controller.wait_for_held(TOKENS, {"real": [peers.CPU, WHOLE]})
    return worker


def where(peers: ModuleType, location: str | None = None) -> dict[str, Any]:
    return {"instance_id": "real", "location": location or peers.CPU}


@pytest.mark.exercises("real worker -> our controller: register, heartbeat")
def test_it_registers_and_its_heartbeats_arrive(controller: Any, worker: Any, peers: ModuleType) -> None:
    info = controller.worker("real")
    assert (info["worker_id"], info["port"], info["peer_init_url"]) == (0, worker.control_port, None)
    assert (info["alive"], info["announced"]) == (True, False)
    before = info["last_heartbeat_time"]
    peers.eventually(lambda: controller.worker("real")["last_heartbeat_time"] > before, "another heartbeat")


@pytest.mark.exercises("real worker -> our controller: admit, lookup")
def test_what_it_stores_is_found(controller: Any, stored: Any, peers: ModuleType) -> None:
    answer = controller.done("/lookup", tokens=TOKENS)
    assert answer["holders"] == {"real": {peers.CPU: WHOLE, peers.DISK: WHOLE}}
    assert controller.held([*TOKENS[:256], 7]) == {"real": [peers.CPU, 256]}
    assert controller.held([7, *TOKENS]) == {}


@pytest.mark.exercises("real worker -> our controller: health")
def test_it_is_healthy(controller: Any, worker: Any) -> None:
    assert controller.done("/health", instance_id="real")["error_codes"] == {"0": 0}


@pytest.mark.exercises("real worker -> our controller: compress, decompress (cachegen)")
def test_it_compresses_and_decompresses(controller: Any, worker: Any, peers: ModuleType) -> None:
    worker.store(FIRST, LAST)
    for path in ("/compress", "/decompress"):
        started = controller.done(path, **where(peers), method="cachegen", tokens=TOKENS)
        assert started["num_tokens"] == WHOLE
        job = controller.done("/check_finish", event_id=started["event_id"])
        assert (job["status"], job["tokens_done"]) == ("done", WHOLE)
    assert worker.retrieve(FIRST, LAST) == WHOLE


@pytest.mark.exercises("real worker -> our controller: an unknown method, answered with 0 tokens by it, is 404 from us")
def test_a_method_that_it_does_not_know(controller: Any, stored: Any, peers: ModuleType) -> None:
    answer = controller.post("/compress", **where(peers), method="zstd", tokens=TOKENS)
    assert answer.status_code == 404, answer.text
    assert "'real'" in answer.text


@pytest.mark.exercises("real worker -> our controller: unknown location, instance and event are 404 from us")
def test_names_that_nobody_knows(controller: Any, stored: Any, peers: ModuleType) -> None:
    for path, body in (
        ("/pin", {**where(peers, "Nowhere"), "tokens": TOKENS}),
        ("/health", {"instance_id": "nobody"}),
        ("/check_finish", {"event_id": "never"}),
    ):
        answer = controller.post(path, **body)
        assert answer.status_code == 404, answer.text


@pytest.mark.exercises("real worker -> our controller: its own error text reaches the client (it has no unpin)")
def test_what_it_cannot_do_says_so_in_its_words(controller: Any, stored: Any, peers: ModuleType) -> None:
    answer = controller.post("/unpin", **where(peers), tokens=TOKENS)
    assert answer.status_code == 500, answer.text
    assert "UnpinWorkerMsg" in answer.text
    assert controller.done("/health", instance_id="real")["error_codes"] == {"0": 0}


@pytest.mark.exercises("real worker -> our controller: 30 calls at once to one worker")
def test_many_calls_at_once_are_all_answered(controller: Any, stored: Any, peers: ModuleType) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda _: controller.post("/health", instance_id="real"), range(30)))
    assert [answer.status_code for answer in answers] == [200] * 30


# --- from here on the worker is left with other contents ---


@pytest.mark.exercises("real worker -> our controller: clear, evict (its disk cannot be cleared: 0 tokens)")
def test_clearing_it_is_seen(controller: Any, worker: Any, peers: ModuleType) -> None:
    worker.store(5000, 5600)
    tokens = list(range(5000, 5600))
    controller.wait_for_held(tokens, {"real": [peers.CPU, WHOLE]})
    assert controller.done("/clear", **where(peers))["num_tokens"] >= WHOLE
    controller.wait_for_held(tokens, {"real": [peers.DISK, WHOLE]})
    assert controller.done("/clear", **where(peers, peers.DISK))["num_tokens"] == 0
    assert controller.held(tokens) == {"real": [peers.DISK, WHOLE]}
    assert worker.retrieve(5000, 5600) == WHOLE


@pytest.mark.exercises("real worker -> our controller: pin holds against clear; nothing there to pin is 404")
def test_pinned_chunks_survive_a_clear(controller: Any, stored: Any, peers: ModuleType) -> None:
    assert controller.done("/pin", **where(peers), tokens=TOKENS)["num_tokens"] == WHOLE
    controller.done("/clear", **where(peers))
    assert stored.retrieve(FIRST, LAST) == WHOLE
    assert controller.held(TOKENS) == {"real": [peers.CPU, WHOLE]}
    missing = controller.post("/pin", **where(peers), tokens=[5] * 600)
    assert missing.status_code == 404, missing.text


@pytest.mark.exercises("real worker -> our controller: compressing twice fails there, and the rest goes on")
def test_compressing_twice(controller: Any, worker: Any, peers: ModuleType) -> None:
    worker.store(3000, 3300)
    tokens = list(range(3000, 3300))
    controller.wait_for_held(tokens, {"real": [peers.CPU, 256]})
    compress = {**where(peers), "method": "cachegen", "tokens": tokens}
    assert controller.done("/compress", **compress)["num_tokens"] == 256
    again = controller.post("/compress", **compress)
    assert again.status_code == 500, again.text
    assert "worker real/0: Worker error" in again.text
    assert controller.done("/health", instance_id="real")["error_codes"] == {"0": 0}
    worker.store(FIRST, LAST)
    assert controller.held(TOKENS) == {"real": [peers.CPU, WHOLE]}


@pytest.mark.exercises("real worker -> our controller: compressing on its disk loses the chunks, and lookup says so")
def test_compressing_on_disk(controller: Any, worker: Any, peers: ModuleType) -> None:
    worker.store(4000, 4300)
    tokens = list(range(4000, 4300))
    peers.eventually(
        lambda: controller.done("/lookup", tokens=tokens)["holders"] == {"real": {peers.CPU: 256, peers.DISK: 256}},
        "both tiers hold it",
    )
    answer = controller.post("/compress", **where(peers, peers.DISK), method="cachegen", tokens=tokens)
    assert answer.status_code == 500, answer.text
    peers.eventually(
        lambda: controller.done("/lookup", tokens=tokens)["holders"] == {"real": {peers.CPU: 256}}, "the disk lost it"
    )


# --- tests with workers of their own ---


@pytest.mark.exercises("real worker -> our controller: evicted for want of room")
def test_what_it_evicts_is_no_longer_found(
    controller: Any, peers: ModuleType, processes: Any, lmcache_env: Any
) -> None:
    # A chunk is 32 layers x 2 x 256 tokens x 32 values of 2 bytes: 1 MiB.
    small = peers.RealWorker(processes, lmcache_env, controller.ports, "small", max_local_cpu_size=0.01)
    old, new = list(range(10_000, 10_512)), list(range(20_000, 24_096))
    small.store(10_000, 10_512)
    controller.wait_for_held(old, {"small": [peers.CPU, 512]})
    small.store(20_000, 24_096)
    controller.wait_for_held(old, {})
    held = controller.held(new).get("small", [peers.CPU, 0])[1]
    assert held == small.retrieve(20_000, 24_096)


@pytest.mark.exercises("real worker -> our controller: full sync after our controller was killed")
def test_a_restarted_controller_learns_everything_again(peers: ModuleType, processes: Any, lmcache_env: Any) -> None:
    controller = peers.our_controller(processes, peers.Ports())
    worker = peers.RealWorker(processes, lmcache_env, controller.ports, "real")
    ranges = [(1000 * i, 1000 * i + 256) for i in range(1, 6)]
    for first, last in ranges:
        worker.store(first, last)
    controller.wait_for_held(list(range(*ranges[-1])), {"real": [peers.CPU, 256]})
    controller.end()
    worker.store(9000, 9256)
    controller.start()
    # With batches of two keys, six keys are three batches.
    for first, last in [*ranges, (9000, 9256)]:
        controller.wait_for_held(list(range(first, last)), {"real": [peers.CPU, 256]})
    info = controller.worker("real")
    assert (info["alive"], info["syncing"], info["key_count"]) == (True, False, 6)
    # It is out of its freeze again: what it stores now arrives.
    peers.eventually(lambda: "Exiting freeze mode" in worker.process.text(), "the freeze ends")
    worker.store(12_000, 12_256)
    controller.wait_for_held(list(range(12_000, 12_256)), {"real": [peers.CPU, 256]})
    assert controller.done("/pin", **where(peers), tokens=list(range(1000, 1256)))["num_tokens"] == 256


@pytest.mark.exercises("real worker -> our controller: killed, given up in time, back again")
def test_a_killed_worker(peers: ModuleType, processes: Any, lmcache_env: Any) -> None:
    controller = peers.our_controller(processes, peers.Ports(), "--worker-timeout", "4", "--call-timeout", "2")
    worker = peers.RealWorker(processes, lmcache_env, controller.ports, "real")
    worker.store(FIRST, LAST)
    controller.wait_for_held(TOKENS, {"real": [peers.CPU, WHOLE]})
    worker.process.end(signal.SIGKILL)
    began = time.monotonic()
    answer = controller.post("/pin", **where(peers), tokens=TOKENS)
    assert answer.status_code == 503, answer.text
    # LMCache's controller would wait for ever.
    assert time.monotonic() - began < 30
    controller.wait_for_held(TOKENS, {})
    assert controller.worker("real")["alive"] is False
    worker.start()
    peers.eventually(lambda: controller.worker("real")["alive"], "it is back")
    worker.store(FIRST, LAST)
    controller.wait_for_held(TOKENS, {"real": [peers.CPU, WHOLE]})
    assert controller.done("/pin", **where(peers), tokens=TOKENS)["num_tokens"] == WHOLE


@pytest.mark.exercises("real worker -> our controller: stopped with SIGTERM, forgotten in time (its goodbye is lost)")
def test_a_worker_that_leaves(peers: ModuleType, processes: Any, lmcache_env: Any) -> None:
    controller = peers.our_controller(processes, peers.Ports(), "--worker-timeout", "4")
    worker = peers.RealWorker(processes, lmcache_env, controller.ports, "real")
    worker.store(FIRST, LAST)
    controller.wait_for_held(TOKENS, {"real": [peers.CPU, WHOLE]})
    worker.process.end(signal.SIGTERM)
    controller.wait_for_held(TOKENS, {})


@pytest.mark.exercises("two real workers -> our controller: copy and move between them, to memory only")
def test_move_between_two(peers: ModuleType, processes: Any, lmcache_env: Any, controller: Any) -> None:
    prompt = list(range(6000, 6600))
    left, right = (
        # Without NIXL, the channel that LMCache has for tests goes over plain sockets.
        peers.RealWorker(processes, lmcache_env, controller.ports, name, **peers.with_peers("mock_memory"))
        for name in ("left", "right")
    )
    left.store(6000, 6600)
    controller.wait_for_held(prompt, {"left": [peers.CPU, WHOLE]})
    positions = {"old_position": ["left", peers.CPU], "new_position": ["right", peers.CPU], "tokens": prompt}
    copied = controller.done("/move", **positions, should_copy=True)
    assert copied["num_tokens"] == WHOLE
    assert controller.done("/check_finish", event_id=copied["event_id"])["status"] == "done"
    assert right.retrieve(6000, 6600) == WHOLE
    controller.wait_for_held(prompt, {"left": [peers.CPU, WHOLE], "right": [peers.CPU, WHOLE]})
    left.store(7000, 7256)
    tokens = list(range(7000, 7256))
    controller.wait_for_held(tokens, {"left": [peers.CPU, 256]})
    moved = controller.done("/move", **{**positions, "tokens": tokens}, should_copy=False)
    assert moved["num_tokens"] == 256
    controller.wait_for_held(tokens, {"right": [peers.CPU, 256]})
    disk = controller.post("/move", **{**positions, "new_position": ["right", peers.DISK]})
    assert disk.status_code == 500, disk.text
    assert "Only support moving to cpu" in disk.text
