"""Three tiers in one instance, and moves between every pair of tiers of instances on different transports."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest

CPU, DISK, REMOTE = "LocalCPUBackend", "LocalDiskBackend", "RemoteBackend"
PROMPT = [(5 * n) % 256 for n in range(100)]
BYTES_PER_TOKEN = 2 * 2 * 2 * 8 * 2  # layers, keys and values, heads, head dim, bfloat16


def tiers(url: str, cpu: str = "1MiB") -> list[dict[str, Any]]:
    return [
        {"kind": "memory", "capacity": cpu},
        {"kind": "disk", "capacity": "1MiB"},
        {"kind": "valkey", "options": {"url": url}},
    ]


def test_broadcast_writes_all_and_reads_the_fastest(fleet: Any, remote_url: str) -> None:
    a = fleet.start("a", local_disk="disk", max_local_disk_size=1, remote_url=remote_url, remote_serde="zstd")
    cold = a.complete(PROMPT)
    fleet.until_held(PROMPT, {"a": {CPU: 100, DISK: 100, REMOTE: 100}})
    assert a.complete(PROMPT)["cached_tokens_by_location"] == {CPU: 99}
    fleet.post("/clear", instance_id="a", location=CPU)
    assert a.complete(PROMPT)["cached_tokens_by_location"] == {DISK: 99}
    fleet.until_held(PROMPT, {"a": {CPU: 100, DISK: 100, REMOTE: 100}})
    for location in (CPU, DISK):
        fleet.post("/clear", instance_id="a", location=location)
    warm = a.complete(PROMPT)
    assert (warm["cached_tokens_by_location"], warm["codecs"]) == ({REMOTE: 99}, {"zstd": 7}), "remote_serde"
    assert warm["text"] == cold["text"]
    # Another instance finds what this one left in the shared store.
    b = fleet.start("b", remote_url=remote_url)
    found = b.complete(PROMPT)
    assert (found["cached_tokens_by_location"], found["text"]) == ({REMOTE: 99}, cold["text"])


def test_write_back_copies_down_in_the_background(fleet: Any, remote_url: str) -> None:
    a = fleet.start("a", own={"tiers": tiers(remote_url), "placement": "write_back"})
    a.complete(PROMPT)
    fleet.until_held(PROMPT, {"a": {CPU: 100, DISK: 100}})
    assert a.metric("lmcache_kit_tier_write_backs_total") > 0


def test_demote_takes_what_is_evicted_one_tier_down(fleet: Any, remote_url: str) -> None:
    a = fleet.start("a", own={"tiers": tiers(remote_url, "20KiB"), "placement": "demote"})
    cold = a.complete(PROMPT)
    fleet.until_held(PROMPT, {"a": {CPU: 100}})
    for number in range(4):
        a.complete([number] * 96)
    fleet.until_held(PROMPT, {"a": {DISK: 100}})
    warm = a.complete(PROMPT)
    assert (warm["cached_tokens_by_location"], warm["text"]) == ({DISK: 99}, cold["text"])
    assert a.metric("lmcache_kit_tier_demotions_total") > 0


def test_pins_hold_under_pressure_until_they_end(fleet: Any) -> None:
    a = fleet.start("a", own={"tiers": [{"kind": "memory", "capacity": "40KiB"}]})
    a.complete(PROMPT)
    fleet.until_held(PROMPT, {"a": {CPU: 100}})
    pin = {"instance_id": "a", "location": CPU, "tokens": PROMPT}
    fleet.post("/pin", **pin, owner="one")
    fleet.post("/pin", **pin, owner="two", ttl=3600)
    for number in range(10):
        a.complete([number] * 96)
    fleet.until_held(PROMPT, {"a": {CPU: 100}})
    fleet.post("/unpin", instance_id="a", location=CPU, owner="one")
    for number in range(10, 20):
        a.complete([number] * 96)
    fleet.until_held(PROMPT, {"a": {CPU: 100}})
    fleet.post("/unpin", **pin, owner="two")
    for number in range(20, 30):
        a.complete([number] * 96)
    fleet.until_held(PROMPT, {})


@pytest.mark.parametrize(("first", "second"), [("zmq", "shm"), ("shm", "zmq")])
def test_moves_between_any_tiers_of_any_instances(fleet: Any, remote_url: str, first: str, second: str) -> None:
    """Every pair of places, moved and copied by turns; the reader at the end tells whether every bit came through."""
    a = fleet.start("a", own={"tiers": tiers(f"{remote_url}/1"), "transport": {"kind": first}}, transfer_channel="zmq")
    b = fleet.start("b", own={"tiers": tiers(f"{remote_url}/2")}, transfer_channel=second)
    instances = {"a": a, "b": b}
    cold = a.complete(PROMPT)
    places = [(name, location) for name in "ab" for location in (CPU, DISK, REMOTE)]
    fleet.until_held(PROMPT, {"a": {CPU: 100, DISK: 100, REMOTE: 100}})
    for location in (DISK, REMOTE):
        fleet.post("/clear", instance_id="a", location=location)
    fleet.until_held(PROMPT, {"a": {CPU: 100}})
    at = ("a", CPU)
    for number, (source, target) in enumerate(itertools.permutations(places, 2)):
        if source != at:
            fleet.do("/move", old_position=at, new_position=source, tokens=PROMPT, should_copy=False)
            at = source
            fleet.until_held(PROMPT, {at[0]: {at[1]: 100}})
        copy = number % 2 == 0
        job = fleet.do("/move", old_position=source, new_position=target, tokens=PROMPT, should_copy=copy)
        assert (job["num_tokens"], job["tokens_done"]) == (100, 100)
        expected: dict[str, dict[str, int]] = {}
        for name, location in [source, target] if copy else [target]:
            expected.setdefault(name, {})[location] = 100
        fleet.until_held(PROMPT, expected)
        if copy:
            fleet.post("/clear", instance_id=source[0], location=source[1])
        at = target
    warm = instances[at[0]].complete(PROMPT)
    assert (warm["cached_tokens"], warm["text"]) == (99, cold["text"])


@pytest.mark.parametrize("kind", ["zmq", "shm"])
def test_a_shaped_link_takes_the_time_of_its_bandwidth(fleet: Any, kind: str) -> None:
    # 100 tokens of 128 bytes over 256 kbit/s take 0.4 s, and 7 chunks wait 2 * 20 ms each.
    shape = {"kind": kind, "bandwidth": "256kbps", "latency": "20ms"}
    a = fleet.start("a", own={"transport": shape})
    b = fleet.start("b", own={"transport": {"kind": kind}})
    a.complete(PROMPT)
    fleet.until_held(PROMPT, {"a": {CPU: 100}})
    began = time.monotonic()
    job = fleet.do("/move", old_position=["a", CPU], new_position=["b", CPU], tokens=PROMPT, should_copy=True)
    least = len(PROMPT) * BYTES_PER_TOKEN * 8 / 256_000 + 7 * 2 * 0.02
    assert time.monotonic() - began >= least
    assert job["seconds"] >= least
    outward = {"direction": "outward", "peer": b.http.get("/health").json()["peer_url"]}
    assert a.metric("lmcache_kit_link_messages_total", **outward) == 7
    assert a.metric("lmcache_kit_link_bytes_total", **outward) > len(PROMPT) * BYTES_PER_TOKEN
    assert a.metric("lmcache_kit_jobs", status="done") == 1


def test_a_remote_store_that_dies_is_told_and_costs_no_completion(fleet: Any, remote_server: Any) -> None:
    url = f"redis://127.0.0.1:{remote_server.port}"
    a = fleet.start("a", remote_url=url)
    a.complete(PROMPT)
    fleet.until_held(PROMPT, {"a": {CPU: 100, REMOTE: 100}})
    tiers = a.http.get("/health").json()["tiers"]
    assert tiers[CPU] == {"available": True}
    assert tiers[REMOTE]["available"]
    assert "address" in tiers[REMOTE], "what the backend says"
    assert a.metric("lmcache_kit_tier_available", location=REMOTE) == 1
    remote_server.process.kill()
    remote_server.process.wait()
    tiers = a.http.get("/health").json()["tiers"]
    assert tiers[CPU] == {"available": True}
    assert not tiers[REMOTE]["available"]
    assert str(remote_server.port) in tiers[REMOTE]["error"]
    assert fleet.post("/health", instance_id="a")["error_codes"] == {"0": 1}
    assert a.complete(PROMPT)["cached_tokens"] == 99
    a.complete([1] * 50)
    fleet.until_held([1] * 50, {"a": {CPU: 50}})
    assert a.metric("lmcache_kit_tier_available", location=REMOTE) == 0
    assert a.metric("lmcache_kit_tier_available", location=CPU) == 1


def test_a_move_that_does_not_fit_fails_and_loses_nothing(fleet: Any) -> None:
    a = fleet.start("a")
    b = fleet.start("b", own={"tiers": [{"kind": "memory", "capacity": "5KiB"}]})  # two chunks, not seven
    cold = a.complete(PROMPT)
    b.complete([1] * 16)  # what b has of others makes room
    fleet.until_held([1] * 16, {"b": {CPU: 16}})
    for copy in (True, False):
        fleet.until_held(PROMPT, {"a": {CPU: 100}, **({} if copy else {"b": {CPU: 32}})})
        body = {"old_position": ["a", CPU], "new_position": ["b", CPU], "tokens": PROMPT, "should_copy": copy}
        state = fleet.finished(fleet.post("/move", **body), "failed")
        assert state["tokens_done"] == 32
        assert "no room" in state["error"]
    # The front is at b now, the rest is where it was.
    fleet.until_held(PROMPT, {"b": {CPU: 32}})
    fleet.do("/move", old_position=["b", CPU], new_position=["a", CPU], tokens=PROMPT, should_copy=False)
    fleet.until_held(PROMPT, {"a": {CPU: 100}})
    warm = a.complete(PROMPT)
    assert (warm["cached_tokens"], warm["text"]) == (99, cold["text"])
