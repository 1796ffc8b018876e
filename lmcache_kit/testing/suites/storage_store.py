"""The store of one test: opened any number of times, under names of its own, cleaned up afterwards."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from lmcache_kit.contracts.storage import Buffer, StorageBackend, StorageContext
from lmcache_kit.testing.suites.base import made

__all__ = ["Names", "Store", "holds"]


class Names:
    """Names of one test, each with a random part: the store may be a server that others use."""

    def __init__(self) -> None:
        self.prefix = f"check.{secrets.token_hex(6)}."
        self.used: set[str] = set()

    def __call__(self, end: object) -> str:
        return self.bare(f"{self.prefix}{end}")

    def bare(self, name: str) -> str:
        """A name without the random part, to be deleted afterwards too."""
        self.used.add(name)
        return name


class Store:
    """Opens backends over one store.

    Args:
        make: makes a backend in a context.
        location: the plugin's.
        folder: an empty folder that holds the instance's data folder.
    """

    def __init__(self, make: Callable[[StorageContext], StorageBackend], location: str, folder: Path) -> None:
        self._make, self._location = make, location
        self.data_dir = folder / "data"
        self.data_dir.mkdir()
        self._opened: list[StorageBackend] = []

    def open(self) -> StorageBackend:
        """Another backend over the store, closed with the store; skips the test where it cannot be used."""
        backend = made(lambda: self.make(self.data_dir))
        self._opened.append(backend)
        return backend

    def make(self, data_dir: Path) -> StorageBackend:
        """A backend whose instance has another data folder; to be closed by the caller."""
        return self._make(
            StorageContext(instance_id="check", location=self._location, capacity_bytes=None, data_dir=data_dir)
        )

    def close(self, names: Names) -> None:
        """Delete what is stored under ``names`` and close all; the tests have said by now what is wrong."""
        with contextlib.suppress(Exception):
            self._opened.append(self.make(self.data_dir))
        for backend in reversed(self._opened):
            if backend is self._opened[-1]:
                for name in names.used:
                    with contextlib.suppress(Exception):
                        backend.delete(name)
            with contextlib.suppress(Exception):
                backend.close()

    def bytes_on_disk(self) -> int:
        """Bytes of all files in the instance's data folder, found without the backend."""
        return sum(
            os.stat(os.path.join(folder, file), follow_symlinks=False).st_size
            for folder, _, files in os.walk(self.data_dir)
            for file in files
        )


def holds(backend: StorageBackend, name: str, blob: Buffer) -> None:
    """Assert that ``name`` holds exactly ``blob``."""
    got = backend.get(name)
    assert got is not None, f"get answers None for {name!r}, which holds {len(blob)} bytes"
    same = bytes(got) == bytes(blob)
    assert same, f"get answers {len(bytes(got))} other bytes than the {len(blob)} that were put under {name!r}"
    size = backend.size(name)
    assert size == len(blob), f"size answers {size} for an object of {len(blob)} bytes"
