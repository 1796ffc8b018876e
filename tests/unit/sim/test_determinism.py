"""The same scenario and seed give the same files, byte for byte, whatever process and folder they are made in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCENARIO = """
name: determinism
clock: virtual
seed: 3
instance_defaults:
  engine:
    kind: synthetic
    options: {num_layers: 2, num_kv_heads: 1, head_dim: 16, prefill_seconds_per_token: 0.0001, decode_seconds: 0.002}
  chunk_size: 16
  hash_algorithm: HASH
  tiers: [{kind: memory, capacity: 64KiB, eviction: lfu}, {kind: disk, capacity: 256KiB, eviction: arc, method: fp8}]
  placement: write_back
instances: [{id: a}, {id: b}, {id: c, placement: demote}]
links: [{between: [a, b], bandwidth: 10Mbps, latency: 1ms}]
faults:
  - {at: 1s, kill: b, after: serve}
  - {at: 2s, restart: b, after: serve}
  - {at: 2500ms, slow_link: {between: [a, b], bandwidth: 1Mbps}, for: 1s, after: serve}
  - {at: 3s, partition: {between: [a, controller]}, for: 1s, after: serve}
  - {at: 3500ms, full_tier: {instance: c, location: LocalDiskBackend}, for: 1s, after: serve}
  - {at: 4s, kill: controller, after: serve}
  - {at: 4200ms, restart: controller, after: serve}
workloads:
  - name: serve
    kind: traffic
    contents: {kind: shared_prefix, groups: 9, prefix_tokens: 128, suffix_tokens: 32, output_tokens: 8}
    arrivals: {kind: poisson, rate: 30}
    requests: 160
    routing: prefix_aware
    on_failure: retry_elsewhere
    probe_seconds: 0.2
  - name: talk
    kind: traffic
    contents: {kind: multi_turn, turns: 3, user_tokens: 48, output_tokens: 16, block_size: 16}
    arrivals: {kind: gamma, rate: 20, cv: 3}
    requests: 40
    routing: least_loaded
  - {name: text, kind: completions, prompts: ["TEXT one", "TEXT two", "TEXT one and more"], max_tokens: 4}
  - {name: pack, kind: compress, of: text, method: fp8, location: LocalCPUBackend}
reporters: []
""".replace(
    "TEXT", "A prompt that is as long as a few chunks of sixteen bytes each, so that there is something to keep:"
)


def files(folder: Path, scenario: str, hash_seed: str) -> dict[str, bytes]:
    folder.mkdir()
    (folder / "s.yaml").write_text(scenario)
    done = subprocess.run(
        [sys.executable, "-m", "lmcache_kit", "run", "s.yaml", "--output-dir", "out"],
        cwd=folder,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return {name: (folder / "out" / name).read_bytes() for name in ("report.json", "events.jsonl")}


@pytest.mark.parametrize("algorithm", ["builtin", "sha256_cbor"])
def test_files_do_not_depend_on_the_process(tmp_path: Path, algorithm: str) -> None:
    scenario = SCENARIO.replace("HASH", algorithm)
    one, other = (files(tmp_path / seed, scenario, seed) for seed in ("random", "4242"))
    assert one == other
    events = [json.loads(line) for line in one["events.jsonl"].splitlines()]
    assert {event["what"] for event in events if event["event"] == "fault"} >= {"kill", "slow_link", "full_tier"}
    assert {event["event"] for event in events} >= {"request", "cache_hit", "cache_evict", "cache_rewrite"}
    times = [event["time"] for event in events]
    assert times == sorted(times)
    if algorithm == "builtin":
        third = files(tmp_path / "third", scenario.replace("seed: 3", "seed: 4"), "4242")
        assert third["events.jsonl"] != one["events.jsonl"], "another seed is another run"
