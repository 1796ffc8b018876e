"""Tests with real peers stay out of ordinary runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def collected(**environment: str) -> str:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests/interop"]
    inherited = {name: value for name, value in os.environ.items() if name != "LMCACHE_KIT_INTEROP"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**inherited, **environment}, stdout=subprocess.PIPE, text=True, timeout=60
    )
    return done.stdout


def test_interop_is_collected_when_it_is_asked_for_and_not_else() -> None:
    assert "no tests collected" in collected()
    assert "test_real_workers.py" in collected(LMCACHE_KIT_INTEROP="1")
