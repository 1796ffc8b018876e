"""Temporary files whose owner can be told dead from alive.

Every writer of a folder holds an exclusive ``flock`` on a file of its own, ``TOKEN.lock``, and names its temporary
files ``TOKEN.N.part``. The kernel drops the lock when the writer dies, however it dies, so a lock that can be taken
belongs to nobody. Unlike a process id this cannot be reused and is right across containers that share the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import secrets
from pathlib import Path

__all__ = ["WriterFiles", "remove_abandoned"]

_LOCK = ".lock"
_PART = ".part"


class WriterFiles:
    """One writer's claim on ``folder`` and the names of its temporary files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        while True:
            self._token = secrets.token_hex(8)
            self._lock = folder / (self._token + _LOCK)
            self._fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX)
                if os.fstat(self._fd).st_nlink:
                    return
            except BaseException:
                os.close(self._fd)
                raise
            os.close(self._fd)  # a cleaner took it between open and flock: start over under a new name

    def next(self) -> Path:
        """A path that nobody else uses."""
        return self._folder / f"{self._token}.{next(self._numbers)}{_PART}"

    def close(self) -> None:
        """Give the claim up; idempotent."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                self._lock.unlink()
            os.close(self._fd)
            self._fd = -1


def remove_abandoned(folder: Path) -> int:
    """Remove temporary files of writers that no longer live; how many. Files of live writers stay."""
    # Parts are listed before locks are looked at: a part that is listed had its lock created before it.
    parts = [path for path in folder.iterdir() if path.name.endswith(_PART)]
    removed = 0
    for lock in [path for path in folder.iterdir() if path.name.endswith(_LOCK)]:
        try:
            fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # gone already, or another user's
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.unlink(missing_ok=True)
        except OSError:  # held by its writer, or not ours to remove
            continue
        finally:
            os.close(fd)
    for part in parts:
        owner = folder / (part.name.partition(".")[0] + _LOCK)
        if not owner.exists():
            with contextlib.suppress(OSError):  # not ours to remove, and in nobody's way
                part.unlink()
                removed += 1
    return removed
