"""Blobs on an fsspec file system: ``ROOT/NAME.blob``, one file or object each."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections.abc import Iterator
from typing import Any

from fsspec.asyn import AsyncFileSystem
from fsspec.core import url_to_fs
from fsspec.dircache import DirCache

from lmcache_kit.contracts.storage import Buffer, StorageBackend
from lmcache_kit.errors import CapacityError, ConfigError, LMCacheKitError, UnavailableError
from lmcache_kit_fsspec.credentials import Credentials
from lmcache_kit_fsspec.place import Place
from lmcache_kit_fsspec.temporary import TemporaryFiles

__all__ = ["FsspecBackend"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class FsspecBackend(StorageBackend):
    """A store that several instances may use at the same time.

    A file system that connects as it is made (SFTP) and cannot is tried again by the next call. Raises
    UnavailableError when the store cannot be reached or refuses, within ``timeout`` seconds where the file system can
    be interrupted (those of fsspec's asynchronous kind: S3, Google, Azure); CapacityError when it is full; ConfigError
    for arguments that the file system does not know.
    """

    def __init__(self, place: Place, credentials: Credentials, *, timeout: float | None = None) -> None:
        self._place = place
        self._credentials = credentials
        self._timeout = timeout
        self._lock = threading.Lock()
        self._fs: Any = None
        self._temporary: TemporaryFiles | None = None
        self._closed = False
        with contextlib.suppress(UnavailableError):
            self._filesystem()

    def put(self, name: str, blob: Buffer) -> None:
        path = self._place.path(name)
        with self._errors(f"write {name} to"):
            fs = self._filesystem()
            if self._temporary is None:
                # Object stores take no other buffers.
                fs.pipe_file(path, blob if isinstance(blob, bytes) else bytes(blob), **self._limit(fs))
                return
            part = self._temporary.next()
            try:
                fs.pipe_file(part, memoryview(blob).cast("B"), **self._limit(fs))
                fs.mv(part, path, **self._limit(fs))
            except BaseException:
                with contextlib.suppress(Exception):  # the first failure is the one to tell
                    fs.rm_file(part, **self._limit(fs))
                raise

    def get(self, name: str) -> Buffer | None:
        with self._errors(f"read {name} from"):
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
        with self._errors(f"read {len(names)} objects from"):
            fs = self._filesystem()
            found = fs.cat(
                list(dict.fromkeys(paths)), on_error="return", **self._place.read_arguments, **self._limit(fs)
            )
            blobs = {path: self._found(fs, found, path) for path in set(paths)}
        return [blobs[path] for path in paths]

    @staticmethod
    def _found(fs: Any, found: dict[str, Any], path: str) -> Buffer | None:
        blob = found[path if path in found else fs._strip_protocol(path)]
        if isinstance(blob, FileNotFoundError):
            return None
        if isinstance(blob, BaseException):
            raise blob
        data: bytes = blob
        return data

    def delete(self, name: str) -> bool:
        path = self._place.path(name)
        with self._errors(f"delete {name} from"):
            fs = self._filesystem()
            # Object stores delete what is not there without a word.
            if self._temporary is None and self._size(path) is None:
                return False
            try:
                fs.rm_file(path, **self._limit(fs))
            except FileNotFoundError:
                return False
            return True

    def size(self, name: str) -> int | None:
        with self._errors(f"look up {name} in"):
            return self._size(self._place.path(name))

    def _size(self, path: str) -> int | None:
        fs = self._filesystem()
        try:
            facts = fs.info(path, **self._limit(fs))
        except FileNotFoundError:
            return None
        return int(facts["size"]) if facts["type"] == "file" else None

    def entries(self) -> Iterator[tuple[str, int]]:
        with self._errors("list"):
            fs = self._filesystem()
            try:
                listed = fs.ls(self._place.root, detail=True, **self._limit(fs))
            except FileNotFoundError:  # an object store has no empty folders
                listed = []
        for facts in listed:
            name = self._place.name(facts["name"])
            if name is not None and facts["type"] == "file":
                yield name, int(facts["size"])

    def health(self) -> dict[str, Any]:
        """Protocol, url and the way of replacing. Raises UnavailableError when the store cannot be reached."""
        with self._errors("reach"):
            fs = self._filesystem()
            if self._temporary is not None:
                fs.info(self._place.root, **self._limit(fs))
            elif top := self._place.root.strip("/").partition("/")[0]:
                # Folders of an object store exist with their first object; its bucket has to exist before.
                with contextlib.suppress(*(() if self._place.protocol != "memory" else (FileNotFoundError,))):
                    fs.info(top, **self._limit(fs))
        return {
            "protocol": self._place.protocol,
            "url": self._credentials.hide(self._place.url),
            "replace": self._place.replace,
        }

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._temporary is not None:
                self._temporary.close()
            # Its connections end with it: nobody else has this object.
            self._fs = self._temporary = None

    def _filesystem(self) -> Any:
        with self._lock:
            if self._closed:
                raise UnavailableError(f"{self._where()} was closed")
            if self._fs is None:
                with self._errors("open"):
                    self._fs, self._temporary = self._open()
            return self._fs

    def _open(self) -> tuple[Any, TemporaryFiles | None]:
        try:
            fs, _ = url_to_fs(self._place.url, skip_instance_cache=True, **self._credentials.arguments)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"the file system of {self._where()} cannot be made: {self._credentials.hide(str(error))}",
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

    def _where(self) -> str:
        return self._credentials.hide(self._place.url)

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except LMCacheKitError:
            raise
        except Exception as error:  # every file system has errors of its own
            reason = self._credentials.hide(_reason(error, self._timeout))
            if isinstance(error, OSError) and error.errno in _FULL:
                raise CapacityError(
                    f"cannot {doing} {self._where()}: {reason}", hint="free space there or lower the tier's capacity"
                ) from None
            raise UnavailableError(
                f"cannot {doing} {self._where()}: {reason}",
                hint="check that the store runs, that the bucket or folder exists, and the credentials",
            ) from None


def _reason(error: Exception, timeout: float | None) -> str:
    if isinstance(error, asyncio.TimeoutError | TimeoutError) and not str(error):
        return f"no answer within {timeout:g} s" if timeout else "no answer in time"
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return text or type(error).__name__
