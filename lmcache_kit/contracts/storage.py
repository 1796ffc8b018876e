"""Storage backends: named blobs of bytes, nothing else.

A backend never looks inside a blob and knows nothing of capacity, eviction or pins: the instance decides what is
stored, and accounts for it. Methods may block; unless the plugin declares ``inline`` they are called from worker
threads, several at a time.

Capabilities:
    ``inline``: every method returns at once (memory), so it may be called on the event loop.
    ``persistent``: contents survive the process; :meth:`StorageBackend.entries` finds them again at start.
    ``shared``: several instances may use one store at the same time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

__all__ = ["Buffer", "StorageBackend", "StorageContext", "SupportsBatch", "SupportsHealth"]

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageContext:
    """Where a backend is used.

    Args:
        instance_id: the instance that owns the tier.
        location: the tier's name.
        capacity_bytes: the tier's capacity, or None; accounted for by the instance, for information only.
        data_dir: a folder that belongs to this instance.
    """

    instance_id: str
    location: str
    capacity_bytes: int | None
    data_dir: Path


class StorageBackend(ABC):
    """A store of blobs by name. Names match ``[0-9a-z._-]{1,128}``.

    Every method may raise UnavailableError when the store cannot be reached; the instance then treats reads as
    misses and refuses writes, and never fails a completion because of it.
    """

    @abstractmethod
    def put(self, name: str, blob: Buffer) -> None:
        """Store ``blob`` under ``name``, replacing what was there, atomically: a reader or a crash sees the old
        object or the new one, whole. ``blob`` must not be kept without copying when it is not ``bytes``."""

    @abstractmethod
    def get(self, name: str) -> Buffer | None:
        """The object, or None when there is none."""

    @abstractmethod
    def delete(self, name: str) -> bool:
        """Remove the object; whether there was one. Its bytes are free when this returns."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of the object, or None when there is none, without reading it."""

    @abstractmethod
    def entries(self) -> Iterator[tuple[str, int]]:
        """``(name, bytes)`` of every object, in any order."""

    def close(self) -> None:  # noqa: B027  (optional to override, not abstract)
        """Release connections and files. Persistent contents stay."""


@runtime_checkable
class SupportsBatch(Protocol):
    """Optional: several reads in one exchange, for stores with a round trip."""

    def get_many(self, names: list[str]) -> list[Buffer | None]:
        """One entry per name, in order."""
        ...


@runtime_checkable
class SupportsHealth(Protocol):
    """Optional: tells whether the store can be reached, and facts worth showing."""

    def health(self) -> dict[str, Any]:
        """Facts for ``/health``; raises UnavailableError when the store cannot be reached."""
        ...
