"""Plugins that cannot be used: one line that names the culprit and says what to do; everything else works."""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from lmcache_kit import hookimpl
from lmcache_kit.clock import ManualClock
from lmcache_kit.contracts import (
    API_VERSION,
    CompressionPlugin,
    EvictionPlugin,
    NoOptions,
    Options,
    StoragePlugin,
    WorkloadPlugin,
)
from lmcache_kit.errors import UnknownNameError
from lmcache_kit.instance.store.codecs import CodecSet
from lmcache_kit.plugins import SLOW_IMPORT_SECONDS, PluginRegistry

NUMBERS = itertools.count()


def compression(**more: Any) -> Any:
    return CompressionPlugin(**{"name": "mine", "summary": "made up", "factory": lambda options: None, **more})


def storage(**more: Any) -> Any:
    known = {"name": "mine", "summary": "made up", "location": "X", "factory": lambda options, context: None}
    return StoragePlugin(**{**known, **more})


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch):
    """A registry with one module that implements hooks by functions, or gives these records."""

    def offer(*records: object, **hooks: Any) -> PluginRegistry:
        made = types.ModuleType(f"made_up_{next(NUMBERS)}")
        if records:
            kind = "storage_backends" if isinstance(records[0], StoragePlugin) else "compression_methods"
            hooks = {f"lmcache_kit_{kind}": lambda: list(records)}
        for name, function in hooks.items():
            setattr(made, name, hookimpl(function))
        monkeypatch.setitem(sys.modules, made.__name__, made)
        return PluginRegistry(entry_points=[], modules=[made.__name__])

    return offer


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A registry with one module of this source."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source: str) -> PluginRegistry:
        name = f"written_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(source)
        return PluginRegistry(entry_points=[], modules=[name])

    return write


def reason(registry: PluginRegistry) -> str:
    """Of the one refusal; the registry must be as good as without that plugin."""
    assert len(registry.broken) == 1, registry.broken
    text = registry.broken[0].reason
    assert "\n" not in text
    assert len(text) < 500
    bare = PluginRegistry(entry_points=[])
    assert {kind: registry.names(kind) for kind in registry.kinds()} == {
        kind: bare.names(kind) for kind in bare.kinds()
    }
    return text


# --- imports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import a_package_that_nobody_has.inside", ["ModuleNotFoundError", "pip install a_package_that_nobody_has"]),
        ("from json import no_such_thing", ["ImportError", "no_such_thing"]),
        ("1 / 0", ["ZeroDivisionError: division by zero"]),
        ("def broken(:", ["SyntaxError", "line 1", "this Python cannot read it"]),
        ("\x00", ["its import failed: "]),
        ("raise SystemExit(3)", ["SystemExit: 3", "wanted to end the program", "__main__"]),
        ("import sys; sys.exit()", ["SystemExit", "wanted to end the program"]),
        ("import asyncio; raise asyncio.CancelledError", ["CancelledError"]),
        ("raise BaseException('odd')", ["BaseException: odd"]),
        ("raise RuntimeError('x' * 5000)", ["RuntimeError: xxx", "..."]),
        ("class E(Exception):\n    def __str__(self): raise ValueError\nraise E", ["its import failed: E"]),
        ("def f(): f()\nf()", ["RecursionError"]),
    ],
)
def test_an_import_that_fails(written, source: str, words: list[str]) -> None:
    text = reason(written(source))
    assert text.startswith("its import failed: ")
    assert [word for word in words if word not in text] == []


def test_ctrl_c_during_an_import_is_the_user_s(written) -> None:
    with pytest.raises(KeyboardInterrupt):
        written("raise KeyboardInterrupt")


def test_a_module_that_is_not_there_is_no_package_to_install() -> None:
    text = reason(PluginRegistry(entry_points=[], modules=["no_such_module.at_all"]))
    assert "is no_such_module.at_all on PYTHONPATH?" in text
    assert "pip install" not in text


@pytest.mark.parametrize(("seconds", "told"), [(SLOW_IMPORT_SECONDS, False), (SLOW_IMPORT_SECONDS + 0.25, True)])
def test_a_slow_import_is_used_and_told_with_its_seconds(monkeypatch, caplog, seconds: float, told: bool) -> None:
    clock = ManualClock()
    module = types.ModuleType("slow_one")
    module.lmcache_kit_compression_methods = hookimpl(lambda: [compression()])  # type: ignore[attr-defined]

    class Point:
        name, value, dist = "slow", "slow_one", None

        def load(self) -> types.ModuleType:
            clock.advance(seconds)
            return module

    with caplog.at_level(logging.WARNING):
        registry = PluginRegistry(entry_points=[Point()], clock=clock)  # type: ignore[list-item]
    assert "mine" in registry.names("compression")
    assert not registry.broken
    texts = [record.getMessage() for record in caplog.records]
    assert [("slow (slow_one) took 1.2 s" in text, "factories" in text) for text in texts] == [(True, True)] * told


# --- hooks ------------------------------------------------------------------------------------------------------------


def half_way() -> Any:
    yield compression()
    raise OSError("no more")


async def coroutine() -> Any:
    return [compression()]


def ends_the_program() -> Any:
    sys.exit("bye")


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        (half_way, ["raised OSError: no more"]),
        (lambda: None, ["returned nothing", "yield CompressionPlugin(...)"]),
        (compression, ["returned one CompressionPlugin", "in a list"]),
        (lambda: 5, ["raised TypeError", "not iterable"]),
        (lambda: "mine", ["returned str, not CompressionPlugin"]),
        (lambda: [compression(), None], ["returned NoneType, not CompressionPlugin"]),
        (lambda: {"mine": compression()}, ["returned str, not CompressionPlugin"]),
        (lambda: [storage()], ["returned StoragePlugin, not CompressionPlugin"]),
        (coroutine, ["is a coroutine", "not async def"]),
        (ends_the_program, ["raised SystemExit: bye"]),
        (lambda: [compression(colour="red")], ["raised TypeError", "colour", "written for this version"]),
        (lambda config: [], ["wants the argument 'config'", "def lmcache_kit_compression_methods():"]),
        (lambda *, config: [], ["wants the argument 'config'"]),
    ],
)
def test_a_hook_that_cannot_be_used(offered, hook: Any, words: list[str]) -> None:
    text = reason(offered(lmcache_kit_compression_methods=hook))
    assert [word for word in ["lmcache_kit_compression_methods", *words] if word not in text] == []


def test_a_hook_may_have_defaults_and_take_what_comes(offered) -> None:
    registry = offered(lmcache_kit_compression_methods=lambda *rest, level=3: [compression(summary=f"{level}")])
    assert registry.get(CompressionPlugin, "mine").summary == "3"


def test_a_hook_without_its_mark_is_told(monkeypatch) -> None:
    module = types.ModuleType("unmarked")
    module.lmcache_kit_compression_methods = lambda: [compression()]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "unmarked", module)
    assert "not marked as a hook (write @hookimpl above it" in reason(
        PluginRegistry(entry_points=[], modules=["unmarked"])
    )


def test_the_specs_of_the_hooks_may_be_imported(written) -> None:
    registry = written("from lmcache_kit.hookspecs import *\nfrom lmcache_kit.hookspecs import lmcache_kit_engines\n")
    assert not registry.broken


def test_one_bad_hook_leaves_nothing_of_the_module(offered) -> None:
    registry = offered(
        lmcache_kit_compression_methods=lambda: [compression()],
        lmcache_kit_eviction_policies=lambda: [compression()],
    )
    assert "not EvictionPlugin" in reason(registry)


# --- records ----------------------------------------------------------------------------------------------------------


class Undescribable(Options, frozen=True):
    place: Path = Path()


class BadDefault(Options, frozen=True):
    level: int = 3

    def __post_init__(self) -> None:
        raise RuntimeError("no default will do")


class NotOptions:
    pass


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (compression(name="My-Codec"), ["'My-Codec'", "lower-case letters"]),
        (compression(name=""), ["name that cannot be used"]),
        (compression(name=5), ["5", "name that cannot be used"]),
        (compression(name="ab\n"), ["name that cannot be used"]),
        (compression(name=None), ["name that cannot be used"]),
        (compression(summary="two\nlines"), ["summary of compression 'mine'", "one line"]),
        (compression(summary=None), ["summary of compression 'mine'"]),
        (compression(options=NotOptions), ["options of compression 'mine'", "no subclass of Options"]),
        (compression(options=NoOptions()), ["options of compression 'mine'", "class MyOptions(Options, frozen=True)"]),
        (compression(options=dict), ["no subclass of Options"]),
        (compression(options=Undescribable), ["options of compression 'mine' cannot be described"]),
        (compression(options=BadDefault), ["cannot be described", "no default will do"]),
        (compression(capabilities="lossless"), ["capabilities of compression 'mine'", 'frozenset({"name"})']),
        (compression(capabilities=["lossless"]), ["capabilities", "['lossless']"]),
        (compression(capabilities=None), ["capabilities"]),
        (compression(factory=None), ["factory of compression 'mine' is None", "factory(options)"]),
        (compression(factory=lambda: None), ["takes no argument for 'options'", "factory(options)"]),
        (compression(factory=lambda options, context: None), ["one more argument 'context'", "factory(options)"]),
        (compression(factory=lambda options, *, device: None), ["one more argument 'device'"]),
        (storage(factory=lambda options: None), ["takes no argument for 'context'", "factory(options, context)"]),
        (storage(location=5), ["location of storage 'mine' is 5", "must be text"]),
        (storage(location=""), ["location of storage 'mine' is empty"]),
        (compression(api_version=API_VERSION - 1), [f"API {API_VERSION - 1}", "the plugin's release for this version"]),
        (compression(api_version=API_VERSION + 1), [f"API {API_VERSION + 1}", "upgrade lmcache-kit"]),
        (compression(api_version="1", name=None), ["API 1", "the plugin's release"]),
        (compression(api_version=None), ["API None"]),
    ],
)
def test_a_record_that_cannot_be_used(offered, record: Any, words: list[str]) -> None:
    text = reason(offered(record))
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize(
    "factory",
    [
        lambda options: None,
        lambda *arguments: None,
        lambda options, more=5: None,
        lambda options, **more: None,
        type("Made", (), {"__init__": lambda self, options: None}),
        type("Made", (), {"__call__": lambda self, options: None})(),
        int,  # in C
        print,
    ],
)
def test_a_factory_may_be_anything_that_takes_the_arguments(offered, factory: Any) -> None:
    assert not offered(compression(factory=factory)).broken


def test_required_options_are_no_fault(offered) -> None:
    class Required(Options, frozen=True):
        url: str

    assert not offered(compression(options=Required)).broken


def test_the_clocks_of_a_workload_are_looked_at(offered) -> None:
    record = WorkloadPlugin(name="mine", summary="", factory=lambda options: None, clocks="wall")  # type: ignore[arg-type, return-value]
    assert "clocks of workload 'mine'" in reason(offered(lmcache_kit_workloads=lambda: [record]))


def test_the_second_of_a_name_is_told_who_has_it(monkeypatch) -> None:
    for name in ("first", "second"):
        module = types.ModuleType(name)
        record = compression(summary=name)
        module.lmcache_kit_compression_methods = hookimpl(lambda record=record: [record])  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    registry = PluginRegistry(entry_points=[], modules=["first", "second"])
    assert [each.source for each in registry.broken] == ["second"]
    assert "'mine' is already registered by first (rename it, or leave one of them out" in registry.broken[0].reason
    assert registry.get(CompressionPlugin, "mine").summary == "first"


# --- who asks for what is not there -----------------------------------------------------------------------------------


def test_asking_for_what_was_refused_tells_why(offered) -> None:
    registry = offered(compression(name="future", api_version=API_VERSION + 1), compression(name="beside"))
    for name in ("future", "beside"):  # neither is there, for the same reason
        with pytest.raises(UnknownNameError, match=f"unknown compression plugin '{name}'") as caught:
            registry.get(CompressionPlugin, name)
        assert caught.value.hint is not None
        assert f"plugin API {API_VERSION + 1}" in caught.value.hint
        assert registry.broken[0].source in caught.value.hint
    with pytest.raises(UnknownNameError) as caught:
        registry.get(EvictionPlugin, "future")
    assert "plugin API" not in str(caught.value.hint)
    assert "not used: made_up_" in str(caught.value.hint)


def test_an_instance_tells_why_it_has_no_such_method(offered) -> None:
    methods = CodecSet(offered(compression(name="future", api_version=API_VERSION + 1)))
    with pytest.raises(UnknownNameError, match="unknown compression method 'future'") as caught:
        methods.get("future")
    assert f"plugin API {API_VERSION + 1}" in str(caught.value.hint)
    assert "zstd" in str(caught.value.hint)
    with pytest.raises(UnknownNameError) as caught:
        CodecSet(PluginRegistry(entry_points=[])).get("cachegen")
    assert str(caught.value.hint).count("zstd") == 1, "the known ones are listed once"


def test_asking_for_a_plugin_whose_import_failed_tells_why_and_not_to_install_it() -> None:
    class Dist:
        name = "lmcache-kit-cachegen"

    class Point:
        name, value, dist = "whatever", "lmcache_kit_cachegen", Dist()

        def load(self) -> None:
            raise ImportError("numpy is of another world")

    registry = PluginRegistry(entry_points=[Point()])  # type: ignore[list-item]
    with pytest.raises(UnknownNameError) as caught:
        registry.get(CompressionPlugin, "cachegen")
    assert "numpy is of another world" in str(caught.value.hint)
    assert "pip install" not in str(caught.value.hint)
    assert "update or uninstall lmcache-kit-cachegen" in str(caught.value.hint)


def test_no_coroutine_is_left_over(offered, recwarn) -> None:
    assert asyncio.iscoroutinefunction(coroutine)
    reason(offered(lmcache_kit_compression_methods=coroutine))
    assert not recwarn.list
