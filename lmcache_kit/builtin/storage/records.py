"""Records and options of the built-in storage backends."""

from __future__ import annotations

from pathlib import Path

from lmcache_kit.contracts.records import Options, StoragePlugin
from lmcache_kit.contracts.storage import StorageBackend, StorageContext

__all__ = ["RECORDS", "DiskOptions"]


class DiskOptions(Options, frozen=True):
    """Options of ``disk``.

    Args:
        path: folder of the files; ``~`` is the home folder, a relative path starts at the instance's data folder.
            None: a folder named after the location in the instance's data folder.
        fsync: force every write to the device before it counts. Contents survive a killed process without it; with
            it they survive a power cut too. What a power cut damages is found by the blob's checksum either way.
    """

    path: str | None = None
    fsync: bool = False


def _memory(options: Options, context: StorageContext) -> StorageBackend:
    from lmcache_kit.builtin.storage.memory import MemoryBackend

    return MemoryBackend()


def _disk(options: Options, context: StorageContext) -> StorageBackend:
    from lmcache_kit.builtin.storage.disk import DiskBackend

    assert isinstance(options, DiskOptions)
    path = Path(options.path or context.location).expanduser()
    return DiskBackend(context.data_dir / path, fsync=options.fsync)


RECORDS: tuple[StoragePlugin, ...] = (
    StoragePlugin(
        name="memory",
        summary="blobs in the process's memory",
        location="LocalCPUBackend",
        factory=_memory,
        capabilities=frozenset({"inline"}),
    ),
    StoragePlugin(
        name="disk",
        summary="one file per blob in a local folder, written atomically",
        location="LocalDiskBackend",
        factory=_disk,
        options=DiskOptions,
        capabilities=frozenset({"persistent"}),
    ),
)
