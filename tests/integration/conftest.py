"""Fixtures of all tests with real processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Start = Callable[..., tuple["subprocess.Popen[str]", str]]


@pytest.fixture
def start_script() -> Iterator[Start]:
    """A function that runs a Python script with arguments and waits for its first line; all are killed at the end."""
    processes: list[subprocess.Popen[str]] = []

    def start(script: Path, *arguments: object) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, str(script), *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
