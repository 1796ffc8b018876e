"""Tests with real peers. `make test-interop` runs them; any other run of pytest leaves this folder out.

They take minutes and environments of gigabytes, so they are collected only when LMCACHE_KIT_INTEROP is set to 1. A test
names what it exercises with ``@pytest.mark.exercises("real LMCache worker -> our controller: pin")``; the table at the
end of the run has a row for each.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent

collect_ignore_glob = [] if os.environ.get("LMCACHE_KIT_INTEROP") == "1" else ["*"]


def load(name: str) -> ModuleType:
    """A module beside or below this file, such as ``processes`` or ``lmcache/peers``."""
    full_name = f"interop_{name.replace('/', '_')}"
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


@pytest.fixture(scope="session")
def load_module() -> Callable[[str], ModuleType]:
    """``load_module("processes")``: a module beside or below this file."""
    return load


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Any]:
    """``processes.start(name, *command, **environment)``; all of them end with the test."""
    with load("processes").processes_in(tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def module_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """As ``processes``, for a whole file of tests."""
    with load("processes").processes_in(tmp_path_factory.mktemp("processes")) as found:
        yield found


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "exercises(what): a row of the table at the end of a run with real peers")
    if collect_ignore_glob == []:
        config.pluginmanager.register(load("table").Table(), "interop-table")
