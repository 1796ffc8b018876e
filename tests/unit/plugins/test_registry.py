"""Discovery, refusals and options of the plugin facade."""

from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint

import pytest

from lmcache_kit import hookimpl
from lmcache_kit.contracts import (
    API_VERSION,
    CompressionPlugin,
    EvictionPlugin,
    NoOptions,
    Options,
    ReporterPlugin,
)
from lmcache_kit.errors import ConfigError, UnknownNameError
from lmcache_kit.plugins import PluginRegistry


def compression(name: str, **more: object) -> CompressionPlugin:
    return CompressionPlugin(name=name, summary="made up", factory=lambda options: None, **more)  # type: ignore[arg-type, return-value]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch):
    """Makes importable plugin modules out of hook functions."""

    def make(name: str, **hooks: object) -> str:
        made = types.ModuleType(name)
        for hook, function in hooks.items():
            setattr(made, hook, hookimpl(function) if callable(function) else function)
        monkeypatch.setitem(sys.modules, name, made)
        return name

    return make


def only(reasons: PluginRegistry) -> str:
    assert len(reasons.broken) == 1, reasons.broken
    assert "\n" not in reasons.broken[0].reason
    return reasons.broken[0].reason


def test_builtins_are_found_without_any_entry_point() -> None:
    registry = PluginRegistry(entry_points=[])
    assert not registry.broken
    assert {"lru", "lfu", "fifo", "mru", "arc"} <= set(registry.names("eviction"))
    assert {"naive", "zstd", "fp8"} <= set(registry.names("compression"))
    assert all(registry.names(kind) for kind in registry.kinds())


def test_a_module_named_with_p_is_a_plugin(module) -> None:
    name = module("plugin_a", lmcache_kit_compression_methods=lambda: [compression("mine")])
    registry = PluginRegistry(entry_points=[], modules=[name])
    assert registry.get(CompressionPlugin, "mine").summary == "made up"
    assert [entry.source for entry in registry.find("mine")] == [name]


def test_an_entry_point_is_loaded_only_when_allowed(module) -> None:
    name = module("plugin_b", lmcache_kit_compression_methods=lambda: [compression("mine")])
    point = EntryPoint(name="b", value=name, group="lmcache_kit")
    assert "mine" in PluginRegistry(entry_points=[point]).names("compression")
    assert "mine" in PluginRegistry(entry_points=[point], allow=["b"]).names("compression")
    assert "mine" not in PluginRegistry(entry_points=[point], allow=[]).names("compression")
    assert "mine" not in PluginRegistry(entry_points=[point], allow=["other"]).names("compression")


def test_a_failing_import_is_one_line_and_everything_else_works(caplog: pytest.LogCaptureFixture) -> None:
    registry = PluginRegistry(entry_points=[], modules=["no_such_module_anywhere"])
    assert "ModuleNotFoundError" in only(registry)
    assert len(caplog.records) == 1
    assert "lru" in registry.names("eviction")


def test_a_hook_that_raises_is_refused(module) -> None:
    def hook() -> list[CompressionPlugin]:
        raise RuntimeError("several\nlines")

    registry = PluginRegistry(entry_points=[], modules=[module("plugin_c", lmcache_kit_compression_methods=hook)])
    assert "RuntimeError: several lines" in only(registry)


def test_a_duplicate_name_is_refused_and_the_first_stays(module) -> None:
    name = module("plugin_d", lmcache_kit_compression_methods=lambda: [compression("other"), compression("zstd")])
    registry = PluginRegistry(entry_points=[], modules=[name])
    assert "already registered by lmcache_kit.builtin" in only(registry)
    assert registry.get(CompressionPlugin, "zstd").summary != "made up"
    assert "other" not in registry.names("compression"), "a refused module must leave nothing behind"


def test_a_name_given_twice_by_one_module_is_refused(module) -> None:
    name = module("plugin_twice", lmcache_kit_compression_methods=lambda: [compression("x"), compression("x")])
    registry = PluginRegistry(entry_points=[], modules=[name])
    assert "twice" in only(registry)


def test_another_api_version_is_refused(module) -> None:
    records = [compression("future", api_version=API_VERSION + 1)]
    registry = PluginRegistry(
        entry_points=[], modules=[module("plugin_e", lmcache_kit_compression_methods=lambda: records)]
    )
    assert f"plugin API {API_VERSION + 1}" in only(registry)


def test_a_wrong_record_type_is_refused(module) -> None:
    registry = PluginRegistry(
        entry_points=[], modules=[module("plugin_f", lmcache_kit_eviction_policies=lambda: [compression("x")])]
    )
    assert "returned CompressionPlugin, not EvictionPlugin" in only(registry)


def test_a_misspelt_hook_is_refused_with_the_right_name(module) -> None:
    registry = PluginRegistry(
        entry_points=[], modules=[module("plugin_g", lmcache_kit_compression_method=lambda: [compression("x")])]
    )
    assert "lmcache_kit_compression_methods" in only(registry)


def test_a_hook_with_a_wrong_signature_is_refused(module) -> None:
    registry = PluginRegistry(
        entry_points=[], modules=[module("plugin_h", lmcache_kit_reporters=lambda surplus: [surplus])]
    )
    assert "surplus" in only(registry)


def test_unknown_names_answer_with_the_known_ones() -> None:
    registry = PluginRegistry(entry_points=[])
    with pytest.raises(UnknownNameError, match="lruu") as caught:
        registry.get(EvictionPlugin, "lruu")
    assert caught.value.hint is not None
    assert "did you mean 'lru'?" in caught.value.hint
    assert "fifo" in caught.value.hint


def test_a_known_distribution_is_proposed() -> None:
    with pytest.raises(UnknownNameError) as caught:
        PluginRegistry(entry_points=[]).get(CompressionPlugin, "cachegen")
    assert caught.value.hint is not None
    assert "pip install lmcache-kit-cachegen" in caught.value.hint
    assert "zstd" in caught.value.hint, "the known names are shown as well"


class Knobs(Options, frozen=True):
    level: int = 3
    flavour: str | None = None


def test_options_are_validated_and_named() -> None:
    record = compression("knobs", options=Knobs)
    assert PluginRegistry.options(record, {"level": 5}) == Knobs(level=5)
    with pytest.raises(ConfigError, match="no option 'levle'") as caught:
        PluginRegistry.options(record, {"levle": 5})
    assert caught.value.hint == "did you mean 'level'?"
    with pytest.raises(ConfigError, match=r"\$\.level"):
        PluginRegistry.options(record, {"level": "high"})
    assert PluginRegistry.options(ReporterPlugin(name="r", summary="", factory=lambda options: None)) == NoOptions()  # type: ignore[arg-type, return-value]
