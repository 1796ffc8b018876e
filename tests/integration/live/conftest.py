"""Runs of the real command in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmcache_kit.scenario import shipped_scenarios

DEADLINE = 60.0


class Command:
    """``lmcache-kit run``; its fleet is found by the mark that its environment carries."""

    def __init__(self, output: Path, *arguments: str) -> None:
        self.output = output
        self.mark = f"{output}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lmcache_kit", "run", *arguments, "--output-dir", str(output)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Settings of the user's own LMCache must not reach the fleet.
            env={**os.environ, "FLEET_TEST_MARK": self.mark, "LMCACHE_CHUNK_SIZE": "7", "LMCACHE_KIT_TOKEN": "x"},
        )

    def finish(self) -> tuple[int, str, str]:
        """Exit status, stdout and stderr."""
        stdout, stderr = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, stdout, stderr

    def fleet(self) -> dict[int, list[str]]:
        """Command lines of the living processes that the run started, by process id."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == self.process.pid:
                continue
            try:
                if f"FLEET_TEST_MARK={self.mark}".encode() not in (entry / "environ").read_bytes().split(b"\0"):
                    continue
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z":
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().decode().split("\0")
            except (OSError, UnicodeDecodeError):
                continue
        return found

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            if value := condition():
                return value
            assert self.process.poll() is None or what.startswith("the fleet"), self.finish()
            time.sleep(0.05)
        raise AssertionError(f"{what} did not come within {DEADLINE} s")

    def wait_for_work(self) -> dict[int, list[str]]:
        """The fleet, once a workload is under way."""
        events = self.output / "events.jsonl"
        self.wait_for(lambda: events.exists() and '"workload_started"' in events.read_text(), "a workload")
        return self.fleet()

    def wait_for_no_fleet(self) -> None:
        self.wait_for(lambda: not self.fleet(), "the fleet's end")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts a run; whatever is left of it when the test ends is killed."""
    commands: list[Command] = []

    def start(*arguments: str, output: str = "out") -> Command:
        commands.append(Command(tmp_path / output, *arguments))
        return commands[-1]

    yield start
    for command in commands:
        if command.process.poll() is None:
            command.process.kill()
            command.process.communicate()
        for pid in command.fleet():
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A scenario whose first workload goes on for minutes."""
    data = yaml.safe_load(shipped_scenarios()["synthetic"].read_text())
    data["name"] = "slow"
    data["workloads"] = [
        {"name": "serve", "kind": "completions", "prompts": [f"prompt {n}" for n in range(600)], "max_tokens": 4}
    ]
    data["expect"] = {}
    data["instance_defaults"]["engine"]["options"]["decode_seconds"] = 0.2
    path = tmp_path / "slow.yaml"
    path.write_text(yaml.safe_dump(data))
    return path
