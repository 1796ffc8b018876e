"""The state machines catch what they are for: broken parts of the cache core and of the controller."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from lmcache_kit.kv import blob

HERE = Path(__file__).parent
PROPERTIES = HERE.parent / "properties"

sys.path.append(str(HERE))
try:
    CORES = importlib.import_module("mutants.cores")
finally:
    sys.path.remove(str(HERE))


def own_copy(file: str) -> ModuleType:
    """The module of a machine, loaded once more, so that what is put into it changes nothing elsewhere."""
    path = PROPERTIES / file
    spec = importlib.util.spec_from_file_location(f"mutated_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module


def run(machine: Any, *, examples: int, start: int = 0) -> None:
    """Without making a failing example smaller, which takes longer than finding it."""
    run_state_machine_as_test(
        seed(start)(machine),
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            database=None,
            print_blob=False,
            report_multiple_bugs=False,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


def search(machine: Any) -> None:
    """Several beginnings: the rarest faults escape one search of this length in five.

    What a search tries depends on the modules at hand too, from which hypothesis takes constants, and so on the tests
    that ran before in this process.
    """
    for start in range(8):
        run(machine, examples=600, start=start)


def put_in(module: ModuleType, broken: Any) -> None:
    for name, replacement in broken.replaces.items():
        assert hasattr(module, name), f"{module.__name__} does not use {name}"
        setattr(module, name, replacement)


@pytest.mark.parametrize("broken", CORES.CACHES, ids=lambda broken: broken.name)
def test_the_machine_of_the_cache_core_catches(broken: Any) -> None:
    module = own_copy("instance_store/test_core_machine.py")
    put_in(module, broken)
    # Of the machine, or of the core itself; a KeyError is an object that its reader finds gone.
    with pytest.raises((AssertionError, KeyError)):
        search(module.CoreMachine)


@pytest.mark.parametrize("broken", CORES.CONTROLLERS, ids=lambda broken: broken.name)
def test_the_machine_of_the_controller_catches(broken: Any) -> None:
    module = own_copy("controller/test_index_machine.py")
    put_in(module, broken)
    with pytest.raises(AssertionError):
        search(module.ControllerMachine)


@pytest.mark.parametrize(
    ("file", "machine"),
    [
        ("instance_store/test_core_machine.py", "CoreMachine"),
        ("controller/test_index_machine.py", "ControllerMachine"),
    ],
)
def test_what_was_broken_passes_as_it_is(file: str, machine: str) -> None:
    run(getattr(own_copy(file), machine), examples=20)


class BlindDigest:
    """A checksum that is the same for all bytes, so that damage is not seen."""

    def __init__(self, view: Any) -> None:
        pass

    def digest(self, length: int) -> bytes:
        return bytes(length)


@pytest.mark.parametrize("blind", [False, True])
def test_the_oracle_of_loads_catches_a_store_that_serves_damaged_blobs(
    monkeypatch: pytest.MonkeyPatch, *, blind: bool
) -> None:
    module = own_copy("instance_store/test_store_under_faults.py")
    history = {
        "rounds": [[("save", 0, 21)], [("load", 0, 21)]],
        "faults": [["damage"] * 25],  # changes what a backend gives out, not what it takes
        "placement": "demote",
        "policy": "lru",
        "capacities": [None],
    }
    oracle = module.test_loads_are_right_whatever_fails.hypothesis.inner_test
    if not blind:
        oracle(**history)
        return
    monkeypatch.setattr(blob, "blake3", SimpleNamespace(blake3=BlindDigest))
    with pytest.raises(AssertionError):
        oracle(**history)
