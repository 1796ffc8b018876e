"""One file per blob in a local folder.

``ROOT/ab/NAME.blob`` are the objects, over 256 folders by a checksum of the name; ``ROOT/tmp`` holds files being
written. An object appears by ``rename``, so a reader or a crash sees the old object or the new one, whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmcache_kit.builtin.storage.names import SUFFIX, is_name, relative_path
from lmcache_kit.builtin.storage.writers import WriterFiles, remove_abandoned
from lmcache_kit.contracts.storage import Buffer, StorageBackend
from lmcache_kit.errors import CapacityError, UnavailableError

__all__ = ["DiskBackend"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskBackend(StorageBackend):
    """Blobs as files under ``root``, which is made when it does not exist.

    Temporary files that a killed writer left are removed at start; those of a writer that lives, in this process or
    another, are not touched. Raises UnavailableError when the folder cannot be used, CapacityError when the disk is
    full.
    """

    def __init__(self, root: Path, *, fsync: bool = False) -> None:
        self._root = root
        self._fsync = fsync
        self._writer: WriterFiles | None = None
        temporary = root / "tmp"
        with self._errors("open"):
            temporary.mkdir(parents=True, exist_ok=True)
            self._writer = WriterFiles(temporary)
            try:
                remove_abandoned(temporary)
            except OSError:
                self.close()
                raise

    def put(self, name: str, blob: Buffer) -> None:
        shard, file_name = relative_path(name)
        folder = self._root / shard
        if self._writer is None:
            raise UnavailableError(f"disk folder {self._root} was closed")
        part = self._writer.next()
        with self._errors(f"write {name} to"):
            try:
                self._write(part, memoryview(blob).cast("B"))
                self._publish(part, folder, file_name)
            except BaseException:
                with contextlib.suppress(OSError):
                    part.unlink()
                raise

    def _write(self, part: Path, view: memoryview) -> None:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            while view:
                view = view[os.write(fd, view) :]
            if self._fsync:
                os.fsync(fd)
        finally:
            os.close(fd)

    def _publish(self, part: Path, folder: Path, file_name: str) -> None:
        try:
            os.replace(part, folder / file_name)
        except FileNotFoundError:
            folder.mkdir(exist_ok=True)
            os.replace(part, folder / file_name)
            if self._fsync:
                _sync_folder(self._root)
        if self._fsync:
            _sync_folder(folder)

    def get(self, name: str) -> Buffer | None:
        with self._errors(f"read {name} from"):
            try:
                with open(self._path(name), "rb", buffering=0) as file:
                    return file.readall()
            except FileNotFoundError:
                return None

    def delete(self, name: str) -> bool:
        with self._errors(f"delete {name} from"):
            try:
                self._path(name).unlink()
            except FileNotFoundError:
                return False
            return True

    def size(self, name: str) -> int | None:
        with self._errors(f"look up {name} in"):
            try:
                return self._path(name).stat().st_size
            except FileNotFoundError:
                return None

    def entries(self) -> Iterator[tuple[str, int]]:
        with self._errors("list"):
            shards = [entry.path for entry in os.scandir(self._root) if len(entry.name) == 2 and entry.is_dir()]
        for shard in shards:
            found = []
            with self._errors("list"), os.scandir(shard) as files:
                for file in files:
                    name = file.name.removesuffix(SUFFIX)
                    # Anything that we did not write stays invisible.
                    if file.name.endswith(SUFFIX) and is_name(name) and relative_path(name)[0] == Path(shard).name:
                        with contextlib.suppress(FileNotFoundError):
                            found.append((name, file.stat(follow_symlinks=False).st_size))
            yield from found

    def health(self) -> dict[str, Any]:
        """Free and total bytes of the file system. Raises UnavailableError when the folder cannot be read."""
        with self._errors("examine"):
            facts = os.statvfs(self._root)
        return {
            "path": str(self._root),
            "free_bytes": facts.f_bavail * facts.f_frsize,
            "total_bytes": facts.f_blocks * facts.f_frsize,
        }

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _path(self, name: str) -> Path:
        return self._root.joinpath(*relative_path(name))

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno in _FULL:
                raise CapacityError(
                    f"cannot {doing} disk folder {self._root}: {reason}",
                    hint="free space there or lower the tier's capacity",
                ) from None
            raise UnavailableError(
                f"cannot {doing} disk folder {self._root}: {reason}", hint="check the folder and its permissions"
            ) from None


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
