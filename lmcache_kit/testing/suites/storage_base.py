"""What the suite of storage backends starts from: a store of the test's own, and names that nobody else uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from lmcache_kit.contracts.records import Options, StoragePlugin
from lmcache_kit.contracts.storage import StorageBackend
from lmcache_kit.testing.suites.base import PluginTests, made
from lmcache_kit.testing.suites.storage_store import Names, Store

__all__ = ["StorageTestsBase"]


class StorageTestsBase(PluginTests):
    """Fixtures of the suite."""

    record_type = StoragePlugin
    contract = StorageBackend
    capabilities = frozenset({"inline", "persistent", "shared"})

    @pytest.fixture
    def unreachable(self) -> Mapping[str, Any]:
        """Options with which the plugin makes a backend whose store cannot be reached."""
        pytest.skip("not given: a fixture `unreachable` with options that lead to no store")

    @pytest.fixture
    def names(self) -> Names:
        """Makes names that nobody else uses; what is stored under them is deleted after the test."""
        return Names()

    @pytest.fixture
    def store(self, record: StoragePlugin, made_options: Options, tmp_path: Path, names: Names) -> Iterator[Store]:
        """Opens the store of this test, again or several times."""
        store = Store(lambda context: record.factory(made_options, context), record.location, tmp_path)
        yield store
        store.close(names)

    @pytest.fixture
    def subject(self, store: Store, names: Names) -> Any:
        backend = store.open()
        if isinstance(backend, StorageBackend):
            made(lambda: backend.size(names("reached")))
        return backend

    @pytest.fixture
    def from_threads(self, record: StoragePlugin) -> None:
        """Skips backends that are only called from one thread."""
        if "inline" in record.capabilities:
            pytest.skip("declared inline: it is called from one thread")
