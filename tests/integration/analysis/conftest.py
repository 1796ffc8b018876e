from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from lmcache_kit.cli import main


class Done(NamedTuple):
    """How a command ended and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]

ENGINE = {"num_layers": 2, "num_kv_heads": 1, "head_dim": 8, "prefill_seconds_per_token": 0.001}
SCENARIO = {
    "name": "small",
    "clock": "virtual",
    "seed": 3,
    "instances": [
        {
            "id": "a",
            "chunk_size": 16,
            "engine": {"kind": "synthetic", "options": ENGINE},
            "tiers": [{"kind": "memory", "capacity": "1MiB"}],
        }
    ],
    "workloads": [
        {"name": "serve", "kind": "completions", "prompts": ["one two three " * 20] * 3, "max_tokens": 3},
        {"name": "again", "kind": "completions", "prompts_of": "serve", "max_tokens": 2},
    ],
    "expect": {"serve.counts.requests": 3},
}


@pytest.fixture(scope="session")
def lmcache_kit() -> Command:
    """Runs the command line in this process: a test has no second to spare for each start."""

    def run(*arguments: object) -> Done:
        stdout, stderr = io.StringIO(), io.StringIO()
        logger = logging.getLogger("lmcache_kit")
        level = logger.level
        try:
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                status = main(list(map(str, arguments)))
        finally:
            logger.setLevel(level)
        return Done(status, stdout.getvalue(), stderr.getvalue())

    return run


@pytest.fixture(scope="session")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scenario that takes no time on the virtual clock."""
    path = tmp_path_factory.mktemp("scenario") / "small.yaml"
    path.write_text(yaml.safe_dump(SCENARIO))
    return path
