"""No plugin of this repository goes without the suite of its kind."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import tomllib
import types
from importlib import metadata
from pathlib import Path

import pytest

from lmcache_kit import hookimpl, testing
from lmcache_kit.builtin.eviction.lru import LRU
from lmcache_kit.contracts import EvictionPlugin, Plugin
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.testing.suites.base import PluginTests

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = sorted((ROOT / "plugins").glob("*/pyproject.toml"))
SUITES = {
    suite.record_type.kind: suite
    for name in testing.__all__
    if name != "strategies"
    for suite in [getattr(testing, name)]
}


def entry_points() -> list[metadata.EntryPoint]:
    """Those that the plugins' own files declare, whether or not they are installed."""
    declared = [tomllib.loads(path.read_text())["project"]["entry-points"]["lmcache_kit"] for path in DISTRIBUTIONS]
    return [
        metadata.EntryPoint(name=name, value=value, group="lmcache_kit")
        for points in declared
        for name, value in points.items()
    ]


def classes_in(folder: Path) -> list[type[PluginTests]]:
    """Classes of the suites that pytest collects from ``folder``."""
    found = []
    for path in sorted(folder.glob("**/test_*.py")):
        # Most files of tests have nothing to do with suites, and some of them are slow to import.
        if "lmcache_kit.testing" not in path.read_text() or path == Path(__file__):
            continue
        name = f"conformance_of_{'_'.join(path.relative_to(ROOT).with_suffix('').parts)}"
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found += [
            member
            for member in vars(module).values()
            if inspect.isclass(member) and issubclass(member, PluginTests) and member.__name__.startswith("Test")
        ]
    return found


def plugin_of(cls: type[PluginTests]) -> tuple[str, str]:
    """Kind and name of the plugin that a class tests."""
    given = inspect.unwrap(inspect.getattr_static(cls, "plugin"))(cls())
    return cls.record_type.kind, given.name if isinstance(given, Plugin) else given


def without_suite(registry: PluginRegistry, classes: list[type[PluginTests]]) -> list[str]:
    covered = {plugin_of(cls) for cls in classes}
    return [
        f"{kind} plugin {entry.record.name!r} of {entry.source} has no test class on {SUITES[kind].__name__}"
        for kind in SUITES
        for entry in registry.all(kind)
        if (kind, entry.record.name) not in covered
    ]


@pytest.fixture
def importable(monkeypatch):
    for path in DISTRIBUTIONS:
        monkeypatch.syspath_prepend(str(path.parent))


@pytest.fixture
def classes(importable):
    return [
        cls
        for folder in [ROOT / "tests/conformance", *(path.parent / "tests" for path in DISTRIBUTIONS)]
        for cls in classes_in(folder)
    ]


def test_there_is_a_suite_for_each_kind_that_can_have_one():
    assert set(SUITES) == {"storage", "compression", "transport", "engine", "eviction", "placement", "trace"}


def test_every_plugin_of_ours_runs_the_suite_of_its_kind(classes):
    registry = PluginRegistry(entry_points=entry_points())
    assert registry.broken == []
    assert without_suite(registry, classes) == []


def test_a_built_in_plugin_is_tested_in_this_folder_and_others_beside_their_code(importable):
    assert without_suite(PluginRegistry(entry_points=[]), classes_in(ROOT / "tests/conformance")) == []
    for path in DISTRIBUTIONS:
        own = tomllib.loads(path.read_text())["project"]["entry-points"]["lmcache_kit"].values()
        points = [point for point in entry_points() if point.value in own]
        builtin = {(kind, name) for kind in SUITES for name in PluginRegistry(entry_points=[]).names(kind)}
        covered = {plugin_of(cls) for cls in classes_in(path.parent / "tests")} | builtin
        registry = PluginRegistry(entry_points=points)
        names = {(kind, name) for kind in SUITES for name in registry.names(kind)}
        assert names - covered == set(), f"not tested in {path.parent.name}/tests"


def test_a_new_plugin_without_a_suite_is_named(classes, monkeypatch):
    module = types.ModuleType("newcomer")
    module.lmcache_kit_eviction_policies = hookimpl(newcomers, specname=None)
    monkeypatch.setitem(sys.modules, "newcomer", module)
    registry = PluginRegistry(entry_points=entry_points(), modules=["newcomer"])
    assert without_suite(registry, classes) == [
        "eviction plugin 'newcomer' of newcomer has no test class on EvictionPolicyTests"
    ]


def newcomers():
    return [EvictionPlugin(name="newcomer", summary="x", factory=lambda options, capacity_bytes: LRU())]


def test_no_class_replaces_a_test_of_its_suite(classes):
    replaced = [
        f"{cls.__name__}.{name}"
        for cls in classes
        for part in cls.__mro__
        if not part.__module__.startswith("lmcache_kit.")
        for name in vars(part)
        if name.startswith("test") and hasattr(SUITES[cls.record_type.kind], name)
    ]
    assert replaced == []
