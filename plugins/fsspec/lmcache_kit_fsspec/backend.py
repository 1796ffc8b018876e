"""Blobs on an fsspec file system: ``ROOT/NAME.blob``, one file or object each."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from fsspec.asyn import AsyncFileSystem
from fsspec.core import url_to_fs
from fsspec.dircache import DirCache

from lmcache_kit.clock import Clock, WallClock
from lmcache_kit.contracts.storage import Buffer, StorageBackend
from lmcache_kit.errors import ConfigError, UnavailableError
from lmcache_kit_fsspec.credentials import Credentials
from lmcache_kit_fsspec.failures import Failures
from lmcache_kit_fsspec.place import Place
from lmcache_kit_fsspec.temporary import TemporaryFiles

__all__ = ["FsspecBackend"]


class FsspecBackend(StorageBackend):
    """A store that several instances may use at the same time.

    A file system that connects as it is made (SFTP) and cannot is tried again by a later call. Raises
    UnavailableError when the store cannot be reached or refuses, within ``timeout`` seconds where the file system can
    be interrupted (those of fsspec's asynchronous kind: S3, Google, Azure), and at once for ``pause`` seconds after
    that; CapacityError when it is full; ConfigError for arguments that the file system does not know.
    """

    def __init__(
        self,
        place: Place,
        credentials: Credentials,
        *,
        timeout: float | None = None,
        pause: float = 0.0,
        clock: Clock | None = None,
    ) -> None:
        self._place = place
        self._credentials = credentials
        self._timeout = timeout
        self._where = credentials.hide(place.url)
        self._failures = Failures(self._where, credentials, clock=clock or WallClock(), pause=pause, timeout=timeout)
        self._lock = threading.Lock()
        self._fs: Any = None
        self._temporary: TemporaryFiles | None = None
        self._closed = False
        try:
            with self._failures.exchange("open"):
                self._filesystem()
        except UnavailableError:
            if place.protocol in ("file", "local"):  # a server may come back, a wrong folder stays wrong
                raise

    def put(self, name: str, blob: Buffer) -> None:
        path = self._place.path(name)
        with self._failures.exchange(f"write {name} to"):
            fs = self._filesystem()
            temporary = self._temporary
            if temporary is None:
                # Object stores take no other buffers.
                fs.pipe_file(path, blob if isinstance(blob, bytes) else bytes(blob), **self._limit(fs))
                return
            part = temporary.next()
            try:
                fs.pipe_file(part, memoryview(blob).cast("B"), **self._limit(fs))
                fs.mv(part, path, **self._limit(fs))
            except BaseException:
                with contextlib.suppress(Exception):  # the first failure is the one to tell
                    fs.rm_file(part, **self._limit(fs))
                raise

    def get(self, name: str) -> Buffer | None:
        with self._failures.exchange(f"read {name} from"):
            fs = self._filesystem()
            try:
                blob: bytes = fs.cat_file(self._place.path(name), **self._place.read_arguments, **self._limit(fs))
            except FileNotFoundError:
                return None
            return blob

    def get_many(self, names: list[str]) -> list[Buffer | None]:
        """All at the same time, where the file system can."""
        if not names:
            return []
        paths = [self._place.path(name) for name in names]
        with self._failures.exchange(f"read {len(names)} objects from"):
            fs = self._filesystem()
            wanted = list(dict.fromkeys(paths))
            found = fs.cat(wanted, on_error="return", **self._place.read_arguments, **self._limit(fs))
            blobs = {path: _blob(found[path]) for path in wanted}
        return [blobs[path] for path in paths]

    def delete(self, name: str) -> bool:
        path = self._place.path(name)
        with self._failures.exchange(f"delete {name} from"):
            fs = self._filesystem()
            # Object stores delete what is not there without a word.
            if self._temporary is None and self._size(fs, path) is None:
                return False
            try:
                fs.rm_file(path, **self._limit(fs))
            except FileNotFoundError:
                return False
            return True

    def size(self, name: str) -> int | None:
        with self._failures.exchange(f"look up {name} in"):
            return self._size(self._filesystem(), self._place.path(name))

    def _size(self, fs: Any, path: str) -> int | None:
        try:
            facts = fs.info(path, **self._limit(fs))
        except FileNotFoundError:
            return None
        return int(facts["size"]) if facts["type"] == "file" else None

    def entries(self) -> Iterator[tuple[str, int]]:
        with self._failures.exchange("list"):
            fs = self._filesystem()
            try:
                listed = fs.ls(self._place.root, detail=True, **self._limit(fs))
            except FileNotFoundError:
                self._find_top(fs)
                listed = []
        for facts in listed:
            name = self._place.name(facts["name"])
            if name is not None and facts["type"] == "file":
                yield name, int(facts["size"])

    def health(self) -> dict[str, Any]:
        """Protocol, url and the way of replacing. Raises UnavailableError when the store cannot be reached."""
        with self._failures.exchange("reach", always=True):
            self._find_top(self._filesystem())
        return {"protocol": self._place.protocol, "url": self._where, "replace": self._place.replace}

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._temporary is not None:
                self._temporary.close()
            # Nobody else has this object: its connections end when it is collected.
            self._fs = self._temporary = None

    def _find_top(self, fs: Any) -> None:
        """Raise unless there is what has to exist before objects do.

        A folder of an object store exists with its first object, its bucket before that.
        """
        if self._place.replace == "rename":
            fs.info(self._place.root, **self._limit(fs))
        elif self._place.protocol != "memory":
            fs.info(self._place.root.strip("/").partition("/")[0], **self._limit(fs))

    def _filesystem(self) -> Any:
        with self._lock:
            if self._closed:
                raise UnavailableError(f"{self._where} was closed")
            if self._fs is None:
                self._fs, self._temporary = self._open()
            return self._fs

    def _open(self) -> tuple[Any, TemporaryFiles | None]:
        try:
            fs, _ = url_to_fs(self._place.url, skip_instance_cache=True, **self._credentials.arguments)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"the file system of {self._where} cannot be made: {self._credentials.hide(str(error))}",
                hint="check storage_options",
            ) from None
        # Other instances write here: what was listed once must not be believed later.
        fs.dircache = DirCache(use_listings_cache=False)
        if self._place.replace == "put":
            return fs, None
        folder = f"{self._place.root}/tmp"  # noqa: S108  (not the machine's)
        fs.makedirs(folder, exist_ok=True)
        return fs, TemporaryFiles(folder, local=bool(getattr(fs, "local_file", False)))

    def _limit(self, fs: Any) -> dict[str, Any]:
        # fsspec's own wrapper of asynchronous methods takes this argument; other methods would choke on it.
        return {"timeout": self._timeout} if isinstance(fs, AsyncFileSystem) and self._timeout else {}


def _blob(found: Any) -> Buffer | None:
    if isinstance(found, FileNotFoundError):
        return None
    if isinstance(found, BaseException):
        raise found
    blob: bytes = found
    return blob
