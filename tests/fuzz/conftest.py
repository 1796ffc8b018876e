"""The targets and their inputs: what our encoders make, and what fuzzing found before."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


def load(name: str) -> ModuleType:
    """A module beside this file, under the name that the runner's process knows it by."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def fuzz() -> ModuleType:
    """The targets."""
    pytest.importorskip("lmcache_kit_cachegen", reason="one of the targets is this plugin's decoder")
    return load("targets")


@pytest.fixture(scope="session")
def seeds(fuzz: ModuleType) -> dict[str, list[bytes]]:
    """Real inputs by target."""
    return load("seeds").seeds()


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """The loop and the files that the targets share are made at their first use."""
    yield
    targets = sys.modules.get("targets")
    if targets is None:
        return
    if targets._loop.cache_info().currsize:
        targets._loop().close()
    if targets._packer.cache_info().currsize:
        targets._packer().folder.close()
    if targets.folder.cache_info().currsize:
        shutil.rmtree(targets.folder())
