"""A file with one JSON line per decision of the cache: hits, misses, admissions, evictions, rewrites and pins."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from lmcache_kit.errors import ConfigError
from lmcache_kit.instance.core.events import CacheEvent

__all__ = ["CacheEventLog"]

log = logging.getLogger(__name__)


class CacheEventLog:
    """An event sink. ``time`` is the reading of the instance's clock, ``key`` the chunk's name.

    Each line is in the file when the call returns, so an instance that is killed leaves what it did. A file that can
    no longer be written is given up with one warning; the cache goes on.

    Args:
        path: the file; what it held is replaced.

    Raises ConfigError when the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._encoder = msgspec.json.Encoder()
        try:
            self._file: io.FileIO | None = io.FileIO(path, "w")
        except OSError as error:
            raise ConfigError(f"event_log: {path} cannot be written: {error.strerror}") from None

    def __call__(self, event: CacheEvent) -> None:
        if self._file is None:
            return
        line = {
            "time": event.time,
            "event": f"cache_{event.op}",
            "location": event.location,
            "key": event.key.name(),
            "bytes": event.nbytes,
            "cause": event.cause,
        }
        try:
            self._file.write(self._encoder.encode(line) + b"\n")
        except OSError as error:
            log.warning("the event log %s is given up: %s", self._path, error.strerror)
            self.close()

    def close(self) -> None:
        """Idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
