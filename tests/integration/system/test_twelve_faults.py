"""The twelve faults of LMCache 0.5.6 (docs/explanation/faults.md), each met by real processes from end to end.

Fault 1, the two documented configurations and their commands, is tests/integration/documents.
"""

from __future__ import annotations

import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import zmq

CPU, DISK = "LocalCPUBackend", "LocalDiskBackend"
PROMPT = [(7 * n) % 251 for n in range(100)]


def test_fault_02_jobs_are_followed_and_pins_end_when_they_are_told_to(fleet: Any) -> None:
    instance = fleet.start("a", local_disk="disk", max_local_disk_size=1)
    instance.complete(PROMPT)
    fleet.until_held(PROMPT, {"a": {CPU: 100, DISK: 100}})
    started = fleet.post("/compress", instance_id="a", method="zstd", location=CPU, tokens=PROMPT)
    assert started["num_tokens"] == 100
    state = fleet.finished(started)
    assert {name: state[name] for name in ("event_id", "status", "num_tokens", "tokens_done", "error")} == {
        "event_id": started["event_id"],
        "status": "done",
        "num_tokens": 100,
        "tokens_done": 100,
        "error": None,
    }
    assert state["bytes_before"] / state["bytes_after"] == pytest.approx(state["ratio"])
    assert state["seconds"] > 0
    assert state["device"] == "cpu"
    assert state == fleet.post("/check_finish", event_id=started["event_id"]), "it can be asked again"
    assert "'nobody'" in fleet.post("/check_finish", 404, event_id="nobody")["detail"]

    assert fleet.post("/pin", instance_id="a", location=CPU, tokens=PROMPT, owner="me")["num_tokens"] == 100
    assert fleet.post("/clear", instance_id="a", location=CPU)["num_tokens"] == 0, "pinned chunks stay"
    assert fleet.post("/unpin", instance_id="a", location=CPU, tokens=PROMPT, owner="other")["num_tokens"] == 0
    assert fleet.post("/unpin", instance_id="a", location=CPU, owner="me")["num_tokens"] == 100
    assert fleet.post("/pin", instance_id="a", location=CPU, tokens=PROMPT, ttl=0.2)["num_tokens"] == 100
    time.sleep(0.3)
    assert fleet.post("/clear", instance_id="a", location=CPU)["num_tokens"] == 100
    fleet.until_held(PROMPT, {"a": {DISK: 100}})


def test_faults_03_and_04_errors_name_the_culprit_and_come_from_the_instance(fleet: Any) -> None:
    instance = fleet.start("a")
    instance.complete(PROMPT)
    fleet.until_held(PROMPT, {"a": {CPU: 100}})
    body = {"instance_id": "a", "method": "zstd", "location": CPU, "tokens": PROMPT}
    for path in ("/compress", "/decompress"):
        assert "known: a" in fleet.post(path, 404, **{**body, "instance_id": "b"})["detail"]
        assert "zstd" in fleet.post(path, 404, **{**body, "method": "zsdt"})["detail"]
        assert CPU in fleet.post(path, 404, **{**body, "location": "LocalGPUBackend"})["detail"]
        fleet.post(path, 400, **{**body, "tokens": []})
        fleet.post(path, 404, **{**body, "tokens": [9, 9, 9]})
    for path, more in (
        ("/pin", {"tokens": PROMPT}),
        ("/unpin", {}),
        ("/clear", {}),
    ):
        assert "known: a" in fleet.post(path, 404, instance_id="b", location=CPU, **more)["detail"]
        assert CPU in fleet.post(path, 404, instance_id="a", location="x", **more)["detail"]
    assert "known: a" in fleet.post("/health", 404, instance_id="b")["detail"]
    assert fleet.post("/health", instance_id="a")["error_codes"] == {"0": 0}
    move = {"tokens": PROMPT, "should_copy": False}
    fleet.post("/move", 404, old_position=["a", CPU], new_position=["b", CPU], **move)
    fleet.post("/move", 400, old_position=["a", CPU], new_position=["a", CPU], **move)
    # The instance's own words, not "the operation failed".
    words = fleet.post("/decompress", 409, **body)["detail"]
    assert "is compressed with 'zstd'" in words
    assert "'naive'" in words


def test_fault_05_doing_it_twice_is_said_and_pins_nothing(fleet: Any) -> None:
    fleet.start("a").complete(PROMPT)
    fleet.until_held(PROMPT, {"a": {CPU: 100}})
    body = {"instance_id": "a", "method": "zstd", "location": CPU, "tokens": PROMPT}
    first = fleet.do("/compress", **body)
    again = fleet.do("/compress", **body)
    assert "already in 'zstd'" in again["note"]
    assert again["bytes_after"] == again["bytes_before"] == first["bytes_after"]
    fleet.do("/decompress", **body)
    assert "is compressed with 'zstd'" in fleet.post("/decompress", 409, **body)["detail"]
    assert fleet.post("/clear", instance_id="a", location=CPU)["num_tokens"] == 100, "nothing was left pinned"


def test_fault_06_compressed_chunks_are_read_and_disk_keeps_them(fleet: Any) -> None:
    instance = fleet.start("a", local_disk="disk", max_local_disk_size=1)
    cold = instance.complete(PROMPT)
    fleet.until_held(PROMPT, {"a": {CPU: 100, DISK: 100}})
    for location, other in ((CPU, DISK), (DISK, CPU)):
        fleet.post("/clear", instance_id="a", location=other)
        fleet.until_held(PROMPT, {"a": {location: 100}})
        for method in ("zstd", "naive", "fp8"):
            fleet.do("/compress", instance_id="a", method=method, location=location, tokens=PROMPT)
            warm = instance.complete(PROMPT)
            if location == DISK:  # reading it has promoted it
                fleet.until_held(PROMPT, {"a": {CPU: 100, DISK: 100}})
                fleet.post("/clear", instance_id="a", location=CPU)
            assert warm["cached_tokens_by_location"] == {location: 99}
            assert warm["codecs"] == {method: 7}
            if method != "fp8":  # the only lossy one, so it comes last
                assert warm["text"] == cold["text"]
        assert len(list((fleet.folder / "disk").rglob("*.blob"))) == (7 if location == DISK else 0)
        fleet.post("/clear", instance_id="a", location=location)
        instance.complete(PROMPT)
        fleet.until_held(PROMPT, {"a": {CPU: 100, DISK: 100}})


def test_fault_07_capacity_follows_the_bytes_really_held(fleet: Any) -> None:
    capacity = 64 * 1024
    instance = fleet.start("a", own={"tiers": [{"kind": "memory", "capacity": capacity}]})
    instance.complete(PROMPT)
    fleet.until_held(PROMPT, {"a": {CPU: 100}})

    def used() -> float:
        return float(instance.metric("lmcache_kit_tier_used_bytes", location=CPU))

    raw = used()
    job = fleet.do("/compress", instance_id="a", method="fp8", location=CPU, tokens=PROMPT)
    assert (job["bytes_before"], job["bytes_after"]) == (raw, used())
    assert used() < 0.7 * raw
    # Compressed, more prompts fit than would raw.
    prompts = [[number] * 96 for number in range(4)]
    for prompt in prompts:
        instance.complete(prompt)
        fleet.do("/compress", instance_id="a", method="fp8", location=CPU, tokens=prompt)
    assert raw * 5 > capacity > used()
    fleet.until_held(PROMPT, {"a": {CPU: 100}})
    for prompt in prompts:
        fleet.until_held(prompt, {"a": {CPU: 96}})
    # Decompressing them needs room that eviction makes, and what was decompressed can be evicted in its turn.
    for prompt in prompts:
        fleet.finished(fleet.post("/decompress", instance_id="a", method="fp8", location=CPU, tokens=prompt))
        assert used() <= capacity
    for number in range(10, 18):
        instance.complete([number] * 96)
        assert used() <= capacity
    fleet.until_held(prompts[-1], {})


def test_fault_08_every_holder_is_credited_with_what_it_can_serve(fleet: Any) -> None:
    a, b, c = (fleet.start(name) for name in "abc")
    a.complete(PROMPT)
    b.complete(PROMPT[:48])
    c.complete(PROMPT)
    fleet.until_held(PROMPT, {"a": {CPU: 100}, "b": {CPU: 48}, "c": {CPU: 100}})
    # c keeps only a suffix: it loses its first chunk to another prompt's eviction, here to a move.
    fleet.do("/move", old_position=["c", CPU], new_position=["b", CPU], tokens=PROMPT[:16], should_copy=False)
    fleet.until_held(PROMPT, {"a": {CPU: 100}, "b": {CPU: 48}})
    answer = fleet.post("/lookup", tokens=PROMPT)
    assert answer["layout_info"] == {"a": [CPU, 100], "b": [CPU, 48]}
    assert (answer["a"], answer["b"]) == ([CPU, 100], [CPU, 48])
    # What a lookup promises is served, but for the last token, which is always computed.
    assert (a.complete(PROMPT)["cached_tokens"], b.complete(PROMPT)["cached_tokens"]) == (99, 48)


def test_fault_09_a_dead_instance_costs_a_deadline_and_a_restart_heals(make_fleet: Any) -> None:
    fleet = make_fleet("--call-timeout", "1", "--worker-timeout", "60")
    a = fleet.start("a", local_disk="disk", max_local_disk_size=1)
    b = fleet.start("b")
    a.complete(PROMPT)
    b.complete(PROMPT[:32])
    fleet.until_held(PROMPT, {"a": {CPU: 100, DISK: 100}, "b": {CPU: 32}})
    a.process.kill()
    began = time.monotonic()
    answer = fleet.http.post("/pin", json={"instance_id": "a", "location": CPU, "tokens": PROMPT})
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert "a/0" in answer.json()["detail"]
    assert time.monotonic() - began < 30
    assert fleet.post("/health", instance_id="b")["error_codes"] == {"0": 0}, "others are served meanwhile"
    a = fleet.start("a", local_disk="disk", max_local_disk_size=1)
    fleet.until_held(PROMPT, {"a": {DISK: 100}, "b": {CPU: 32}})
    assert fleet.post("/health", instance_id="a")["error_codes"] == {"0": 0}
    with ThreadPoolExecutor(30) as pool:
        body = {"instance_id": "a", "location": DISK, "tokens": PROMPT}
        answers = list(pool.map(lambda _: fleet.http.post("/pin", json=body).status_code, range(90)))
    assert answers == [200] * 90


def test_fault_09_an_instance_that_dies_young_is_given_up(make_fleet: Any) -> None:
    fleet = make_fleet("--call-timeout", "1", "--worker-timeout", "2")
    a = fleet.start("a", lmcache_worker_heartbeat_time=600)
    a.complete(PROMPT)
    fleet.until_held(PROMPT, {"a": {CPU: 100}})
    fleet.eventually(
        lambda: a.http.get("/health").json()["worker"]["heartbeats"], "the first heartbeat, long before the second"
    )
    a.process.kill()
    fleet.until_held(PROMPT, {})
    assert fleet.http.post("/health", json={"instance_id": "a"}).status_code == 503


def test_fault_09_the_controller_restarts_and_learns_everything_again(make_fleet: Any) -> None:
    fleet = make_fleet()
    a = fleet.start("a")
    a.complete(PROMPT)
    fleet.until_held(PROMPT, {"a": {CPU: 100}})
    fleet.controller.kill()
    a.complete(PROMPT[:50] + [1] * 50)
    ports = {name: fleet.ports[name] for name in ("pull", "reply", "heartbeat")}
    fleet.start_controller(monitor=json.dumps(ports), port=fleet.ports["http"])
    fleet.until_held(PROMPT, {"a": {CPU: 100}})
    fleet.until_held(PROMPT[:50] + [1] * 50, {"a": {CPU: 100}})
    assert fleet.post("/health", instance_id="a")["error_codes"] == {"0": 0}


def test_fault_10_malformed_frames_stop_nothing(fleet: Any) -> None:
    a = fleet.start("a")
    context = zmq.Context()
    try:
        for kind, name in ((zmq.PUSH, "pull"), (zmq.DEALER, "reply"), (zmq.DEALER, "heartbeat")):
            socket = context.socket(kind)
            socket.connect(f"tcp://127.0.0.1:{fleet.ports[name]}")
            for frame in (b"", b"\xc1", b"{", b'{"type": "KVAdmitMsg"}', b"\x81\xa4type\xa1x", bytes(range(256)) * 40):
                socket.send_multipart([frame, frame])
            socket.close(linger=1000)
        health = a.http.get("/health").json()["worker"]
        control = context.socket(zmq.DEALER)
        control.connect(f"tcp://127.0.0.1:{health['control_port']}")
        for frame in (b"", b"\xc1", b"{}"):
            control.send_multipart([b"", frame])
            assert control.poll(10_000), "the worker answers what it cannot read"
            assert b"ErrorMsg" in control.recv_multipart()[-1]
        control.close(linger=0)
    finally:
        context.term()
    a.complete(PROMPT)
    fleet.until_held(PROMPT, {"a": {CPU: 100}})
    assert fleet.post("/health", instance_id="a")["error_codes"] == {"0": 0}
    assert 'lmcache_kit_controller_malformed_frames_total{socket="pull"}' in fleet.http.get("/metrics").text


def test_fault_11_a_mixed_fleet_is_looked_up_with_each_ones_own_chunks(fleet: Any) -> None:
    prompt = [(3 * n) % 256 for n in range(700)]
    fleet.start("small", chunk_size=64).complete(prompt)
    fleet.start("cbor", chunk_size=256, pre_caching_hash_algorithm="sha256_cbor").complete(prompt)
    fleet.start("blake", chunk_size=100, pre_caching_hash_algorithm="blake3").complete(prompt)
    fleet.start("whole", chunk_size=256, save_unfull_chunk=False).complete(prompt)
    fleet.start("seeded", chunk_size=256, own={"none_hash": 77, "data_dir": "data-seeded"}).complete(prompt)
    expected = {name: {CPU: 700} for name in ("small", "cbor", "blake", "seeded")}
    fleet.until_held(prompt, {**expected, "whole": {CPU: 512}})
    answer = fleet.post("/lookup?explain=true", tokens=prompt)
    assert len(answer["explain"]["specs"]) == 5
    assert "fill no chunk of 256" in json.dumps(answer["explain"])
    # A prefix that ends within a chunk: each is credited with its own whole chunks only.
    fleet.until_held(
        prompt[:300],
        {"small": {CPU: 256}, "cbor": {CPU: 256}, "blake": {CPU: 300}, "whole": {CPU: 256}, "seeded": {CPU: 256}},
    )
    refused = fleet.post("/move", 409, old_position=["small", CPU], new_position=["cbor", CPU], tokens=prompt)
    assert "chunk" in refused["detail"]


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_fault_12_a_hostile_file_runs_nothing_and_is_dropped(fleet: Any) -> None:
    a = fleet.start("a", local_cpu=False, local_disk="disk", max_local_disk_size=1)
    cold = a.complete(PROMPT)
    fleet.until_held(PROMPT, {"a": {DISK: 100}})
    mark = fleet.folder / "executed"
    files = list((fleet.folder / "disk").rglob("*.blob"))
    assert len(files) == 7
    for path in files:
        path.write_bytes(pickle.dumps(Bomb(mark)))
    warm = a.complete(PROMPT)
    assert warm["text"] == cold["text"]
    assert warm["cached_tokens"] == 0
    assert not mark.exists()
    fleet.eventually(lambda: a.complete(PROMPT)["cached_tokens"] == 99, "a read of what was stored anew")
    assert not mark.exists()
