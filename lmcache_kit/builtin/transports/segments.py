"""Shared memory segments: files on a memory file system that never outlive their use.

One folder per user (mode 0700) holds, for every process that owns segments, a file ``<owner>.owner`` on which the
process holds a lock, and its segments ``<owner>-<number>.seg``. The receiver of a segment maps it and unlinks it at
once, so from then on the memory goes away with the last mapping, whatever is killed. A segment that was written but
not yet fetched when its owner was killed is told by the owner's lock, which the kernel releases: the next process
that opens the folder, and every listener from time to time, removes it. Locks hold across process namespaces and
reused process ids, where asking whether a process id lives does not.

``multiprocessing.shared_memory`` is not used: before Python 3.13 its resource tracker removes segments that another
process still uses, and warns at exit about those that another process removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.errors import ConfigError, TransportError

__all__ = ["SegmentFolder", "default_folder", "lock_file", "release_name"]

_ALIGNMENT = 64
_OWNER = re.compile(r"([0-9a-f]{16})\.owner")
_LISTENER_LOCK = re.compile(r"[A-Za-z0-9._-]+\.lock")
_SEGMENT = re.compile(r"([0-9a-f]{16})-[0-9]{1,20}\.seg")
_MAX_IOV = 512  # the kernel takes 1,024
_POPULATE = getattr(mmap, "MAP_POPULATE", 0)


def default_folder() -> Path:
    """The folder that all processes of this user share unless told otherwise."""
    base = Path("/dev/shm")  # noqa: S108  (the folder made in it is checked to be ours)
    return (base if base.is_dir() else Path(tempfile.gettempdir())) / f"lmcache-kit-{os.getuid()}"


def lock_file(path: Path) -> int | None:
    """A descriptor of ``path``, created if need be, that holds its lock; None when someone else holds it.

    The lock ends when the descriptor is closed or the process dies. Remove the file before closing the descriptor.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        # The holder before us may have removed the file between our opening and locking it.
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)


def release_name(folder: Path, name: str, descriptor: int) -> None:
    """Free a listener's name: remove its socket and its lock file, then give up the lock."""
    for suffix in (".sock", ".lock"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(folder / f"{name}{suffix}")
    os.close(descriptor)


def _align(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


class SegmentFolder:
    """This process's segments, and the view of other processes' ones, in one folder.

    Args:
        path: the folder; made when it does not exist.

    Raises ConfigError when the folder belongs to another user or is open to others.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = path.lstat()
        except OSError as error:
            raise ConfigError(f"cannot use {path} for shared memory: {error.strerror}") from None
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise ConfigError(
                f"{path} is not a folder that belongs to this user alone, so it is not used for shared memory",
                hint="remove it, or set the transport's directory",
            )
        self._numbers = 0
        self._lock: int | None = None
        while self._lock is None:
            self._owner = secrets.token_hex(8)
            self._lock = lock_file(self._owner_path(self._owner))
        self.sweep()

    def _owner_path(self, owner: str) -> Path:
        return self.path / f"{owner}.owner"

    def write(self, frames: Sequence[Buffer]) -> tuple[str, list[int]]:
        """A new segment with ``frames`` in it: its name and the offset of each frame.

        Raises OSError when there is not enough memory, having left nothing behind. Blocks for the time of the copy.
        """
        self._numbers += 1
        name = f"{self._owner}-{self._numbers}.seg"
        offsets, pieces, end = [], [], 0
        for frame in frames:
            start = _align(end)
            if start > end:
                pieces.append(memoryview(bytes(start - end)))
            offsets.append(start)
            view = memoryview(frame).cast("B")
            pieces.append(view)
            end = start + len(view)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.path / name, flags, 0o600)
        try:
            _write_all(descriptor, [piece for piece in pieces if len(piece)])
        except BaseException:
            self.discard(name)
            raise
        finally:
            os.close(descriptor)
        return name, offsets

    def fetch(self, name: str, places: Sequence[tuple[int, int]]) -> list[memoryview]:
        """The frames at ``places``, pairs of offset and length, of a segment that any process of this user wrote.

        The segment's name is gone afterwards; its memory stays as long as one of the frames is referenced.
        Raises TransportError when the segment is gone or too small, or ``name`` is not a segment's name.
        """
        if _SEGMENT.fullmatch(name) is None:
            raise TransportError(f"{name!r} is not the name of a shared memory segment")
        try:
            descriptor = os.open(self.path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise TransportError(f"shared memory segment {name} cannot be opened: {error.strerror}") from None
        try:
            found = os.fstat(descriptor)
            size = max((offset + length for offset, length in places), default=0)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or not 0 < size <= found.st_size:
                raise TransportError(f"shared memory segment {name} does not hold the {size} bytes announced")
            mapped = mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED | _POPULATE, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
            self.discard(name)
        whole = memoryview(mapped)
        return [whole[offset : offset + length] for offset, length in places]

    def discard(self, name: str) -> None:
        """Remove a segment that nobody will fetch any more, if it is still there."""
        if _SEGMENT.fullmatch(name) is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.path / name)

    def sweep(self) -> int:
        """Remove what killed processes left behind; returns the number of segments removed."""
        segments: dict[str, list[str]] = {}
        for entry in os.listdir(self.path):
            if (match := _OWNER.fullmatch(entry)) is not None:
                segments.setdefault(match[1], [])
            elif (match := _SEGMENT.fullmatch(entry)) is not None:
                segments.setdefault(match[1], []).append(entry)
        removed = 0
        for owner, names in segments.items():
            if owner == self._owner:
                continue
            descriptor = lock_file(self._owner_path(owner))
            if descriptor is None:
                continue
            for name in names:
                self.discard(name)
                removed += 1
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._owner_path(owner))
            os.close(descriptor)
        for entry in os.listdir(self.path):
            if _LISTENER_LOCK.fullmatch(entry) and (descriptor := lock_file(self.path / entry)) is not None:
                release_name(self.path, entry.removesuffix(".lock"), descriptor)
        return removed

    def close(self) -> None:
        """Remove every segment of this process that was not fetched; idempotent."""
        if self._lock is None:
            return
        for entry in os.listdir(self.path):
            match = _SEGMENT.fullmatch(entry)
            if match is not None and match[1] == self._owner:
                self.discard(entry)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._owner_path(self._owner))
        os.close(self._lock)
        self._lock = None


def _write_all(descriptor: int, pieces: list[memoryview]) -> None:
    # write() and not a mapping: a full memory file system is then an error and not a signal that kills the process.
    first = 0
    while first < len(pieces):
        written = os.writev(descriptor, pieces[first : first + _MAX_IOV])
        if written == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        while first < len(pieces) and written >= len(pieces[first]):
            written -= len(pieces[first])
            first += 1
        if written:
            pieces[first] = pieces[first][written:]
