"""Storage backends: named blobs, whole or not at all."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmcache_kit.contracts.records import Options, StoragePlugin
from lmcache_kit.contracts.storage import StorageBackend, StorageContext
from lmcache_kit.testing.suites.base import PluginTests, made

__all__ = ["StorageBackendTests"]


class Names:
    """Names of one test, each with a random part: the store may be a server that others use."""

    def __init__(self) -> None:
        self.prefix = f"check.{secrets.token_hex(6)}."
        self.used: set[str] = set()

    def __call__(self, end: object) -> str:
        name = f"{self.prefix}{end}"
        self.used.add(name)
        return name


class StorageBackendTests(PluginTests):
    """What :class:`lmcache_kit.contracts.StorageBackend` promises."""

    record_type = StoragePlugin
    contract = StorageBackend
    capabilities = frozenset({"inline", "persistent", "shared"})

    @pytest.fixture
    def names(self) -> Names:
        """Makes names that nobody else uses; what is stored under them is deleted after the test."""
        return Names()

    @pytest.fixture
    def open_backend(
        self, record: StoragePlugin, made_options: Options, tmp_path: Path, names: Names
    ) -> Iterator[Callable[[], Any]]:
        """Opens the store of this test, again or several times; all that was opened is closed after the test."""
        context = StorageContext(
            instance_id="check", location=record.location, capacity_bytes=None, data_dir=tmp_path / "data"
        )
        context.data_dir.mkdir()
        opened: list[Any] = []

        def open_one() -> Any:
            backend = made(lambda: record.factory(made_options, context))
            opened.append(backend)
            return backend

        yield open_one
        for backend in reversed(opened):
            for name in names.used:
                with contextlib.suppress(Exception):  # the tests have said what is wrong
                    backend.delete(name)
            with contextlib.suppress(Exception):
                backend.close()

    @pytest.fixture
    def subject(self, open_backend: Callable[[], Any], names: Names) -> Any:
        backend = open_backend()
        if isinstance(backend, StorageBackend):
            made(lambda: backend.size(names("reached")))
        return backend

    def test_nothing_is_under_a_new_name(self, subject: StorageBackend, names: Names) -> None:
        name = names("missing")
        assert subject.get(name) is None
        assert subject.size(name) is None
        assert subject.delete(name) is False
