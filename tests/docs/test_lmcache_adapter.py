"""The adapter of how-to/adapt-an-lmcache-backend.md, against plug-ins that do what LMCache's interface lets them do."""

from __future__ import annotations

import importlib.util
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lmcache_kit.errors import ConfigError, UnavailableError
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.testing import StorageBackendTests

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "adapt-an-lmcache-backend.md"
FILES = dict(re.findall(r"^cat > (\w+)\.py <<'PYTHON'\n(.*?)^PYTHON$", PAGE.read_text(), re.M | re.S))


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The modules of the page, by name."""
    modules: dict[str, ModuleType] = {}
    for name, source in FILES.items():
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        modules[name] = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(__import__("sys").modules, name, modules[name])
        spec.loader.exec_module(modules[name])
    return SimpleNamespace(**modules)


class TestAdapter(StorageBackendTests):
    @pytest.fixture
    def plugin(self, page):
        (record,) = page.lmcache_store.lmcache_kit_storage_backends()
        return record

    @pytest.fixture
    def options(self):
        return {"module_path": "their_store", "class_name": "TheirStore"}


@pytest.fixture
def adapted(page):
    """An adapter over a plug-in with some methods replaced, and the plug-in."""
    made = []

    def make(timeout: float = 10.0, extra: dict[str, Any] | None = None, **methods: Callable[..., Any]) -> Any:
        page.their_store.Changed = type("Changed", (page.their_store.TheirStore,), methods)
        (record,) = page.lmcache_store.lmcache_kit_storage_backends()
        values = {"module_path": "their_store", "class_name": "Changed", "timeout": timeout}
        options = PluginRegistry.options(record, {**values, "extra_config": extra or {}})
        made.append(record.factory(options, None))
        return made[-1], made[-1]._store

    yield make
    for adapter in made:
        adapter.close()


def test_a_replacement_reaches_a_store_that_ignores_keys_it_has(adapted) -> None:
    adapter, store = adapted()
    for blob in (b"old", b"new and longer", b""):
        adapter.put("a", blob)
        assert (adapter.get("a"), adapter.size("a")) == (blob, len(blob))
        assert len(store.held) == 1, "the old object takes room"


def test_a_put_that_was_refused_without_a_word_is_an_error_and_the_old_object_stays(adapted) -> None:
    adapter, _ = adapted(extra={"their_store.limit": 3})
    adapter.put("a", b"old")
    with pytest.raises(UnavailableError, match="did not take a"):
        adapter.put("a", b"too long")
    assert adapter.get("a") == b"old"


def test_a_put_without_futures_is_waited_for(adapted, page) -> None:
    gate = threading.Event()

    def submit(self: Any, keys: Any, objs: Any, **_: Any) -> None:
        self.putting.update(key.to_string() for key in keys)

        def later() -> None:
            gate.wait(10)
            for key, obj in zip(keys, objs, strict=True):
                self.held[key.to_string()] = (obj.get_shape(), obj.get_dtype(), bytes(obj.byte_array))
                self.putting.discard(key.to_string())

        threading.Thread(target=later).start()

    adapter, _ = adapted(batched_submit_put_task=submit)
    putting = threading.Thread(target=adapter.put, args=("a", b"1"))
    putting.start()
    assert adapter.get("a") is None
    gate.set()
    putting.join()
    assert adapter.get("a") == b"1"


def test_a_put_that_never_ends_costs_the_timeout(adapted) -> None:
    adapter, _ = adapted(timeout=0.05, exists_in_put_tasks=lambda self, key: True)
    with pytest.raises(UnavailableError, match=r"not stored within 0\.05 s"):
        adapter.put("a", b"1")


def test_what_the_store_evicts_by_itself_is_a_miss_everywhere(adapted) -> None:
    adapter, store = adapted()
    adapter.put("a", b"1")
    adapter.put("b", b"22")
    store.held.clear()
    assert (adapter.size("a"), list(adapter.entries())) == (None, [])
    assert adapter.get("a") is None
    assert adapter.delete("b") is False
    adapter.put("a", b"3")
    assert list(adapter.entries()) == [("a", 1)]


@pytest.mark.parametrize("method", ["get_blocking", "contains", "batched_submit_put_task", "remove"])
def test_whatever_the_plug_in_raises_is_an_unavailable_store(adapted, method: str) -> None:
    broken = False

    def fail(self: Any, *arguments: Any, **more: Any) -> Any:
        if broken:
            raise RuntimeError("it broke")
        return getattr(super(type(self), self), method)(*arguments, **more)

    adapter, _ = adapted(**{method: fail})
    adapter.put("a", b"1")
    broken = True
    calls = {"get_blocking": lambda: adapter.get("a"), "contains": lambda: adapter.size("a")}
    with pytest.raises(UnavailableError, match="RuntimeError: it broke"):
        calls.get(method, lambda: adapter.put("a", b"2"))()


@pytest.mark.parametrize(("module", "name"), [("no_such_module", "X"), ("their_store", "NoSuchClass")])
def test_a_plug_in_that_is_not_there_is_a_configuration_error(page, module: str, name: str) -> None:
    (record,) = page.lmcache_store.lmcache_kit_storage_backends()
    options = PluginRegistry.options(record, {"module_path": module, "class_name": name})
    before = threading.active_count()
    with pytest.raises(ConfigError, match=name):
        record.factory(options, None)
    assert threading.active_count() == before
