"""Scenarios with an engine that is a server of its own, on a stand-in for vLLM: boot, work, faults, and every end."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmcache_kit.builtin.launchers.local import LocalLauncher
from lmcache_kit.client import cache_facts
from lmcache_kit.instance.faults import TOKEN_VARIABLE
from lmcache_kit.live import OutputFolder
from lmcache_kit.live.faults import WallFaults, new_token, with_token
from lmcache_kit.live.fleet import Fleet
from lmcache_kit.live.fleet_plan import plan_fleet
from lmcache_kit.live.supervision import Supervisor
from lmcache_kit.plugins import registry
from lmcache_kit.scenario import load_scenario, validate

STAND_IN = Path(__file__).with_name("stand_in_vllm.py")


@pytest.fixture
def vllm(tmp_path: Path) -> Path:
    """A folder with the command `vllm`."""
    folder = tmp_path / "vllm bin"
    folder.mkdir()
    command = folder / "vllm"
    # Not in the first line: a path with a space, or a long one, would not do there.
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{STAND_IN}" "$@"\n')
    command.chmod(0o755)
    return command


@pytest.fixture
def scenario(tmp_path: Path, vllm: Path) -> Callable[..., Path]:
    """Writes a scenario: the instance v runs the stand-in, the instance a beside it is ours."""

    def write(workloads: list[dict[str, Any]], **more: Any) -> Path:
        tiers = [{"kind": "memory", "capacity": "64MiB"}, {"kind": "disk", "capacity": "64MiB"}]
        engine = {"kind": "vllm", "model": "m", "options": {"executable": str(vllm)}, "args": ["--max-model-len", 2048]}
        data: dict[str, Any] = {
            "name": "with-vllm",
            "seed": 3,
            "instance_defaults": {"chunk_size": 16, "tiers": tiers},
            "instances": [{"id": "v", "engine": engine}, {"id": "a", "engine": {"kind": "synthetic", "model": "m"}}],
            "workloads": workloads,
            "reporters": [],
            **more,
        }
        path = tmp_path / "scenario.yaml"
        path.write_text(yaml.safe_dump(data))
        return path

    return write


def marked(mark: Path) -> dict[int, list[str]]:
    """Command lines of living processes below this one that carry the mark, by process id."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                environment = (entry / "environ").read_bytes().split(b"\0")
                if f"FLEET_TEST_MARK={mark}".encode() in environment:
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().decode().split("\0")
    return {pid: argv for pid, argv in found.items() if argv != [""]}


def children_of(command: Any) -> dict[int, list[str]]:
    """Processes of the fleet that a server has started, and not the runner."""
    return {pid: argv for pid, argv in command.fleet().items() if "child" not in " ".join(argv[:4])}


PROMPTS = [
    {"text": f"prompt {n} of a few words, long enough for a handful of chunks", "instance": "v"} for n in range(3)
]
SLOW = [{"name": "serve", "kind": "completions", "prompts": PROMPTS * 500, "max_tokens": 2}]


def test_every_workload_on_a_server_of_its_own_beside_one_of_ours(run: Any, scenario: Any) -> None:
    here = {"instance": "v", "location": "LocalCPUBackend"}
    there = {"instance": "a", "location": "LocalCPUBackend"}
    contents = {"kind": "shared_prefix", "groups": 2, "prefix_tokens": 40, "suffix_tokens": 8, "output_tokens": 4}
    path = scenario(
        [
            {"name": "serve", "kind": "completions", "prompts": PROMPTS, "stream": False},
            {"name": "lookup", "kind": "lookup", "of": "serve"},
            {"name": "pin", "kind": "pin", "of": "serve"},
            {"name": "compress", "kind": "compress", "of": "serve", "method": "zstd"},
            {"name": "read_back", "kind": "completions", "compare_to": "serve", "stream": False},
            {"name": "streamed", "kind": "completions", "compare_to": "serve"},
            {"name": "move", "kind": "move", "of": "serve", "from": here, "to": there, "copy": True},
            {"name": "elsewhere", "kind": "completions", "compare_to": "serve", "instances": ["a"]},
            {"name": "unpin", "kind": "unpin", "of": "serve"},
            {
                "name": "play",
                "kind": "traffic",
                "contents": contents,
                "arrivals": {"kind": "poisson", "rate": 50},
                "requests": 8,
            },
            {"name": "clear", "kind": "clear", "instances": ["v"]},
        ]
    )
    command = run(str(path), "--format", "json")
    status, stdout, stderr = command.finish()
    assert status == 0, stderr
    assert command.fleet() == {}
    report = json.loads(stdout)
    found = {result["name"]: result for result in report["results"]}
    assert found["serve"]["cached_tokens"] == 0
    assert found["serve"]["stored_tokens"] == found["serve"]["tokens"], "what it says beside whole answers is read"
    assert found["lookup"]["all_found"] is True
    assert found["pin"]["tokens"] == found["serve"]["tokens"] == found["unpin"]["tokens"]
    assert found["compress"]["tokens"] == found["serve"]["tokens"]
    assert found["read_back"]["text_equal"] is True
    assert found["read_back"]["chunks_read_by_codec"].keys() == {"zstd"}
    assert found["read_back"]["cached_tokens_by_location"].keys() == {"LocalCPUBackend"}
    assert found["move"]["verified"] is True
    assert found["elsewhere"]["text_equal"] is True
    assert found["elsewhere"]["cached_tokens"] > 0, "both know the same chunks by the same names"
    assert found["play"]["counts"]["failed"] == 0
    assert found["play"]["chunk_token_hit_rate"] is not None, "the runner knows the chunk size"
    # Absent, not wrong: beside streamed answers there are no facts, and its metrics say nothing of tiers.
    streamed = found["streamed"]
    assert streamed["cached_tokens"] > 0
    assert streamed["ttft_seconds"]["p50"] > 0
    absent = ("chunks_read_by_codec", "cached_tokens_by_location", "stored_tokens", "bytes_before", "bytes_after")
    assert [streamed[key] for key in absent] == [None] * 5
    assert found["compress"]["bytes_before"] is found["compress"]["ratio"] is found["clear"]["bytes_after"] is None
    assert found["play"]["stored_tokens"] is None
    assert ("engine", "vllm") in {(each["kind"], each["name"]) for each in report["plugins"]}
    log = (command.output / "logs" / "v.log").read_text()
    assert "engine vllm: " in log, "the command line is in its log"
    assert "the stand-in reads its weights" in log


async def test_a_server_that_is_killed_goes_with_all_that_it_started_and_comes_back(
    scenario: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEET_TEST_MARK", str(tmp_path))
    plugins, folder = registry(), OutputFolder(tmp_path / "out")
    made = load_scenario(scenario(SLOW))
    validate(made, plugins)
    folder.prepare()
    token = new_token()
    plan = with_token(plan_fleet(made, plugins, folder), token)
    assert [TOKEN_VARIABLE in planned.spec.env for planned in plan.instances] == [False, True]
    supervisor = Supervisor(LocalLauncher())
    lines: list[str] = []
    fleet = Fleet(plan, supervisor, lines.append)
    logs = {planned.instance_id: folder.cache_events(planned.instance_id) for planned in plan.instances}
    faults = WallFaults(plan, token, supervisor, fleet, logs, timeout=60.0)
    try:
        await fleet.boot(timeout=60.0)
        client = fleet.instances["v"].client
        prompt = PROMPTS[0]["text"]
        first = await client.complete(prompt, max_tokens=4)
        tokens = await client.tokenize(prompt)
        engine = {pid for pid, argv in marked(tmp_path).items() if "synthetic" in argv and "--port" in argv}
        assert len(engine) == 2, "the stand-in's engine, and the instance beside it"
        before = set(marked(tmp_path))
        joined = await fleet.registered_at("v")
        await faults.kill("v")
        assert len(before - set(marked(tmp_path))) == 2, "its engine's process is gone as well"
        await faults.restart("v")
        assert await fleet.registered_at("v") != joined
        assert (await fleet.controller.lookup(tokens))["prefix"] == {"v": len(tokens)}, "it told what is on its disk"
        again = await client.complete(prompt, max_tokens=4)
        assert again["choices"][0]["text"] == first["choices"][0]["text"]
        assert cache_facts(again)["cached_tokens_by_location"].keys() == {"LocalDiskBackend"}
        await faults.kill("controller")
        await faults.restart("controller")
        assert (await fleet.controller.lookup(tokens))["prefix"] == {"v": len(tokens)}, "and told the new controller"
    finally:
        await faults.close()
        await fleet.close()
        await supervisor.stop()
    assert marked(tmp_path) == {}


def test_a_runner_that_is_killed_leaves_nothing_of_a_server(run: Any, scenario: Any) -> None:
    command = run(str(scenario(SLOW)))
    command.wait_for_work()
    assert children_of(command), "the server has a child"
    command.process.kill()
    command.process.communicate()
    command.wait_for_no_fleet()


def test_the_last_words_of_a_server_that_cannot_start_are_shown(run: Any, scenario: Any) -> None:
    status, _, stderr = run(str(scenario(SLOW)), "--set", "instances.v.env={STAND_IN: crash}").finish()
    assert status == 1
    assert "error: instance v ended with status 1 during start-up; the last lines of its log:" in stderr
    assert "    ValueError: No available memory for the cache blocks." in stderr
    assert "Traceback" not in stderr
