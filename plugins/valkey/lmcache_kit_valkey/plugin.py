"""The record and the options; the client package is imported when a backend is made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from msgspec import Meta

from lmcache_kit.contracts.records import Options, StoragePlugin
from lmcache_kit.contracts.storage import StorageBackend, StorageContext
from lmcache_kit.hookspecs import hookimpl

__all__ = ["ValkeyOptions", "lmcache_kit_storage_backends"]

Seconds = Annotated[float, Meta(gt=0)]


class ValkeyOptions(Options, frozen=True):
    """Options of ``valkey``.

    Args:
        url: where the server is: ``valkey://`` or ``redis://`` (``valkeys://``, ``rediss://`` with TLS)
            ``[user:password@]host[:port][/database]``, or ``unix:///path/of/socket``.
        prefix: put before the name of every object; stores with different prefixes do not see each other.
        connect_timeout: seconds to wait for a connection.
        timeout: seconds to wait for an answer.
    """

    url: str = "valkey://127.0.0.1:6379/0"
    prefix: str = "lmcache_kit:"
    connect_timeout: Seconds = 2.0
    timeout: Seconds = 5.0


def _valkey(options: Options, context: StorageContext) -> StorageBackend:
    from lmcache_kit_valkey.backend import ValkeyBackend

    assert isinstance(options, ValkeyOptions)
    return ValkeyBackend(
        options.url, prefix=options.prefix, connect_timeout=options.connect_timeout, timeout=options.timeout
    )


@hookimpl
def lmcache_kit_storage_backends() -> Iterable[StoragePlugin]:
    yield StoragePlugin(
        name="valkey",
        summary="blobs on a Valkey or Redis server",
        location="RemoteBackend",
        factory=_valkey,
        options=ValkeyOptions,
        capabilities=frozenset({"persistent", "shared"}),
    )
