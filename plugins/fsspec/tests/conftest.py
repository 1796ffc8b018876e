"""Makes backends of the plugin's records, and a file system that a test can slow down and break."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.asyn import AsyncFileSystem
from lmcache_kit_fsspec import lmcache_kit_storage_backends

from lmcache_kit.contracts import StorageBackend, StorageContext
from lmcache_kit.plugins import PluginRegistry


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., StorageBackend]]:
    """``make(record name, instance_id=..., **options)``; all are closed after the test."""
    records = {record.name: record for record in lmcache_kit_storage_backends()}
    made: list[StorageBackend] = []

    def make(name: str = "fsspec", *, instance_id: str = "i", **options: Any) -> StorageBackend:
        record = records[name]
        context = StorageContext(
            instance_id=instance_id, location="RemoteBackend", capacity_bytes=None, data_dir=tmp_path / "data"
        )
        backend = record.factory(PluginRegistry.options(record, options), context)
        made.append(backend)
        return backend

    yield make
    for backend in made:
        backend.close()


class Store(AsyncFileSystem):
    """An object store in a dict of the class, with fsspec's own cache of lists, as its remote file systems have it."""

    protocol = "brittle"
    objects: dict[str, bytes]
    calls: list[str]
    delay: float
    failure: Exception | None

    async def _step(self, call: str) -> None:
        self.calls.append(call)
        if self.delay:
            await asyncio.sleep(self.delay)
        if self.failure is not None:
            raise self.failure

    async def _pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        await self._step("put")
        self.objects[path] = bytes(value)

    async def _cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
        await self._step("get")
        if path not in self.objects:
            raise FileNotFoundError(path)
        return self.objects[path]

    async def _rm_file(self, path: str, **_: Any) -> None:
        await self._step("delete")
        self.objects.pop(path, None)  # without a word

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        await self._step("info")
        if path in self.objects:
            return {"name": path, "size": len(self.objects[path]), "type": "file"}
        if path == "bucket":
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    async def _ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        await self._step("ls")
        if path in self.dircache:
            return list(self.dircache[path])
        found = [
            {"name": name, "size": len(blob), "type": "file"}
            for name, blob in self.objects.items()
            if name.rpartition("/")[0] == path
        ]
        if not found:
            raise FileNotFoundError(path)
        self.dircache[path] = found
        return found


@pytest.fixture
def store() -> type[Store]:
    """The class behind ``brittle://``: ``objects``, ``calls``, ``delay`` in seconds, ``failure`` to raise."""
    Store.objects, Store.calls, Store.delay, Store.failure = {}, [], 0.0, None
    fsspec.register_implementation("brittle", Store, clobber=True)
    return Store
