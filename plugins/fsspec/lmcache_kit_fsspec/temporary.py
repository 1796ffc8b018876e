"""Names of files that are being written, on file systems where a rename makes an object."""

from __future__ import annotations

import itertools
import secrets
from pathlib import Path

from lmcache_kit.builtin.storage.writers import WriterFiles, remove_abandoned

__all__ = ["TemporaryFiles"]


class TemporaryFiles:
    """Paths in ``folder`` that nobody else uses.

    On a local file system, files that a killed writer left are removed; elsewhere a dead writer cannot be told from one
    that lives, and they stay.
    """

    def __init__(self, folder: str, *, local: bool) -> None:
        self._folder = folder
        self._token = secrets.token_hex(8)
        self._numbers = itertools.count()
        self._files: WriterFiles | None = None
        if local:
            self._files = WriterFiles(Path(folder))
            remove_abandoned(Path(folder))

    def next(self) -> str:
        """A new path."""
        if self._files is not None:
            return str(self._files.next())
        return f"{self._folder}/{self._token}.{next(self._numbers)}.part"

    def close(self) -> None:
        """Give the names up; idempotent."""
        if self._files is not None:
            self._files.close()
