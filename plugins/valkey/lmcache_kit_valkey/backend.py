"""Blobs on a Valkey or Redis server: one string value per object, under ``PREFIX + NAME``."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import valkey

from lmcache_kit.contracts.storage import Buffer, StorageBackend
from lmcache_kit.errors import CapacityError, ConfigError, UnavailableError

__all__ = ["ValkeyBackend"]

_NAME = re.compile(rb"[0-9a-z._-]{1,128}")
_SCAN_COUNT = 1000

T = TypeVar("T")


class ValkeyBackend(StorageBackend):
    """A store that several instances may share.

    No connection is made before the first call, and a broken one is replaced by the next call: a server that was
    restarted is used again without more ado. Raises UnavailableError, within the time limits, when the server cannot
    be reached or refuses, CapacityError when it is out of memory, ConfigError for a URL that cannot be understood.
    """

    def __init__(
        self, url: str, *, prefix: str = "lmcache_kit:", connect_timeout: float = 2.0, timeout: float = 5.0
    ) -> None:
        # Any: the client's types are those of its synchronous and its asynchronous face at once.
        self._client: Any
        try:
            self._client = valkey.Valkey.from_url(url, socket_connect_timeout=connect_timeout, socket_timeout=timeout)
        except (ValueError, TypeError) as error:
            # The text of the URL stays out of the message: it may hold a password.
            raise ConfigError(
                f"the url of the valkey backend is not usable: {error}", hint="write it like valkey://127.0.0.1:6379/0"
            ) from None
        facts = self._client.connection_pool.connection_kwargs
        if facts.get("decode_responses"):
            raise ConfigError("the url of the valkey backend asks for text answers, blobs are bytes")
        self._where = (
            facts["path"] if "path" in facts else f"{facts.get('host', 'localhost')}:{facts.get('port', 6379)}"
        )
        self._prefix = prefix.encode()

    def put(self, name: str, blob: Buffer) -> None:
        # A view, for the client refuses a bytearray. SET replaces the whole value at once.
        value = memoryview(blob).cast("B")
        self._call(lambda: self._client.set(self._key(name), value))

    def get(self, name: str) -> Buffer | None:
        blob: bytes | None = self._call(lambda: self._client.get(self._key(name)))
        return blob

    def get_many(self, names: list[str]) -> list[Buffer | None]:
        """One ``MGET``, hence one round trip."""
        if not names:
            return []
        return self._call(lambda: self._client.mget([self._key(name) for name in names]))

    def delete(self, name: str) -> bool:
        # DEL, not UNLINK: the bytes must be free when this returns.
        return bool(self._call(lambda: self._client.delete(self._key(name))))

    def size(self, name: str) -> int | None:
        return self._size(self._key(name))

    def entries(self) -> Iterator[tuple[str, int]]:
        seen: set[bytes] = set()  # SCAN may answer a key twice
        pattern = re.sub(rb"([\\*?\[\]^])", rb"\\\1", self._prefix) + b"*"
        cursor = 0
        while True:
            cursor, keys = self._call(functools.partial(self._client.scan, cursor, match=pattern, count=_SCAN_COUNT))
            fresh = [key for key in keys if key not in seen and _NAME.fullmatch(key[len(self._prefix) :])]
            seen.update(fresh)
            for key, size in zip(fresh, self._call(functools.partial(self._lengths, fresh)), strict=True):
                if isinstance(size, int) and (size or self._size(key) is not None):
                    yield key[len(self._prefix) :].decode(), size
            if cursor == 0:
                return

    def health(self) -> dict[str, Any]:
        """Server, version, bytes used and reachable address."""
        server = self._call(lambda: self._client.info("server"))
        memory = self._call(lambda: self._client.info("memory"))
        name = "valkey" if "valkey_version" in server else "redis"
        return {
            "address": self._where,
            "server": name,
            "version": str(server.get(f"{name}_version", "unknown")),
            "used_bytes": int(memory.get("used_memory", 0)),
            "limit_bytes": int(memory.get("maxmemory", 0)) or None,
        }

    def close(self) -> None:
        self._client.close()

    def _key(self, name: str) -> bytes:
        return self._prefix + name.encode()

    def _size(self, key: bytes) -> int | None:
        size: int = self._call(lambda: self._client.strlen(key))
        # STRLEN answers 0 for a missing key and for an empty value.
        return size if size or self._call(lambda: self._client.exists(key)) else None

    def _lengths(self, keys: list[bytes]) -> list[Any]:
        """Length per key, or the error of a key that holds something else than a string."""
        if not keys:
            return []
        with self._client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.strlen(key)
            lengths: list[Any] = pipeline.execute(raise_on_error=False)
            return lengths

    def _call(self, command: Callable[[], T]) -> T:
        # Every command here may run twice without harm. A connection that broke since its last use says so only now;
        # a time-out is not tried again, for the caller's time is up.
        with contextlib.suppress(valkey.ConnectionError):
            return self._guard(command)
        try:
            return self._guard(command)
        except valkey.ConnectionError as error:
            raise self._unavailable(error) from None

    def _guard(self, command: Callable[[], T]) -> T:
        try:
            return command()
        except valkey.ConnectionError:
            raise
        except valkey.exceptions.OutOfMemoryError as error:
            raise CapacityError(
                f"valkey server at {self._where} is out of memory: {error}", hint="raise its maxmemory"
            ) from None
        except (valkey.ValkeyError, OSError) as error:
            raise self._unavailable(error) from None

    def _unavailable(self, error: Exception) -> UnavailableError:
        return UnavailableError(
            f"valkey server at {self._where} cannot be used: {error}", hint="check that it runs and the url option"
        )
