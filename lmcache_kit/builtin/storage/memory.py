"""Blobs in the process's memory."""

from __future__ import annotations

from collections.abc import Iterator

from lmcache_kit.contracts.storage import Buffer, StorageBackend

__all__ = ["MemoryBackend"]


class MemoryBackend(StorageBackend):
    """A dict of ``bytes``. ``bytes`` go in and come out without a copy; any other buffer is copied once, going in.

    A reader keeps the object it got alive, so a delete or a replacement never changes bytes under it.
    """

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}

    def put(self, name: str, blob: Buffer) -> None:
        self._objects[name] = bytes(blob)  # bytes(b) of exact bytes is b itself

    def get(self, name: str) -> Buffer | None:
        return self._objects.get(name)

    def delete(self, name: str) -> bool:
        return self._objects.pop(name, None) is not None

    def size(self, name: str) -> int | None:
        blob = self._objects.get(name)
        return None if blob is None else len(blob)

    def entries(self) -> Iterator[tuple[str, int]]:
        # A snapshot: other threads may put and delete while this is read.
        return iter([(name, len(blob)) for name, blob in list(self._objects.items())])

    def close(self) -> None:
        self._objects.clear()
