"""Tests with real peers. `make test-interop` runs them; any other run of pytest leaves this folder out.

They take minutes and environments of gigabytes, so they are collected only when LMCACHE_KIT_INTEROP is set to 1. A test
names what it exercises with ``@pytest.mark.exercises("real LMCache worker -> our controller: pin")``; the table at the
end of the run has a row for each.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent

collect_ignore_glob = [] if os.environ.get("LMCACHE_KIT_INTEROP") == "1" else ["*"]


def load(name: str) -> ModuleType:
    """A module beside this file."""
    full_name = f"interop_{name}"
    if full_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(full_name, HERE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[full_name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full_name])
    return sys.modules[full_name]


@pytest.fixture(scope="session")
def lmcache_env() -> Any:
    """The environment of real LMCache: ``.python``, ``.bin(name)``, ``.versions()``, ``.run(code, *arguments)``."""
    return load("environments").environment("lmcache")


@pytest.fixture(scope="session")
def vllm_env() -> Any:
    """The environment of real vLLM, with this checkout's distributions: as ``lmcache_env``."""
    return load("environments").environment("vllm")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "exercises(what): a row of the table at the end of a run with real peers")
    if collect_ignore_glob == []:
        config.pluginmanager.register(load("table").Table(), "interop-table")
