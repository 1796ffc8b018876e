"""The records and their options; fsspec is imported when a backend is made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal
from urllib.parse import quote

import msgspec
from msgspec import Meta

from lmcache_kit.contracts.records import Options, StoragePlugin
from lmcache_kit.contracts.storage import StorageBackend, StorageContext
from lmcache_kit.errors import ConfigError
from lmcache_kit.hookspecs import hookimpl
from lmcache_kit_fsspec.credentials import refuse_credentials

__all__ = ["FsspecOptions", "MemoryOptions", "lmcache_kit_storage_backends"]

Seconds = Annotated[float, Meta(gt=0)]


class FsspecOptions(Options, frozen=True):
    """Options of ``fsspec`` and ``fsspec_private``.

    Args:
        url: the folder, or bucket and prefix, that holds the objects: ``s3://bucket/prefix``, ``file:///folder``.
            Buckets must exist, folders are made.
        storage_options: arguments of the fsspec file system, e.g. ``{endpoint_url: "http://127.0.0.1:9000"}``. They are
            copied into reports, so credentials are refused here.
        secrets: storage options whose values are read from environment variables, by name, e.g.
            ``{key: MY_KEY, secret: MY_SECRET}``; a dot leads into a mapping.
        replace: how an object is replaced at once: ``put``, because the store's upload is atomic; ``rename``, by
            renaming a temporary file; ``auto``, as is known of the protocol.
        timeout: seconds that one exchange may take, where the file system can be interrupted.
        pause: seconds after a failure during which the store is left alone and calls fail at once.
    """

    url: str
    storage_options: dict[str, Any] = msgspec.field(default_factory=dict)
    secrets: dict[str, str] = msgspec.field(default_factory=dict)
    replace: Literal["auto", "put", "rename"] = "auto"
    timeout: Seconds = 30.0
    pause: Annotated[float, Meta(ge=0)] = 5.0

    def __post_init__(self) -> None:
        # As early as this: a scenario is checked before any of it is written anywhere.
        refuse_credentials(self.url, self.storage_options)


class MemoryOptions(Options, frozen=True):
    """Options of ``fsspec_memory``.

    Args:
        url: a folder of the process's ``memory://`` file system.
    """

    url: str = "memory://lmcache_kit"


def _shared(options: Options, context: StorageContext) -> StorageBackend:
    assert isinstance(options, FsspecOptions)
    return _lasting(options, "")


def _private(options: Options, context: StorageContext) -> StorageBackend:
    assert isinstance(options, FsspecOptions)
    return _lasting(options, _folder_of(context))


def _lasting(options: FsspecOptions, below: str) -> StorageBackend:
    from lmcache_kit_fsspec.backend import FsspecBackend
    from lmcache_kit_fsspec.credentials import Credentials
    from lmcache_kit_fsspec.place import Place

    if options.url.startswith("memory:"):
        # What is declared must be true: contents would neither outlive the process nor be seen by other instances.
        raise ConfigError("memory:// is gone when the process ends", hint="use the storage plugin fsspec_memory")
    credentials = Credentials(options.storage_options, options.secrets)
    place = Place.of(options.url, below=below, replace=options.replace)
    return FsspecBackend(place, credentials, timeout=options.timeout, pause=options.pause)


def _memory(options: Options, context: StorageContext) -> StorageBackend:
    from lmcache_kit_fsspec.backend import FsspecBackend
    from lmcache_kit_fsspec.credentials import Credentials
    from lmcache_kit_fsspec.place import Place

    assert isinstance(options, MemoryOptions)
    if not options.url.startswith("memory://"):
        raise ConfigError("fsspec_memory takes memory:// urls only", hint="use the storage plugin fsspec")
    place = Place.of(options.url, below=_folder_of(context))
    return FsspecBackend(place, Credentials({}, {}))


def _folder_of(context: StorageContext) -> str:
    """Keeps instances apart that have the same options, as all of a scenario's defaults do."""
    return f"{quote(context.instance_id, safe='')}/{quote(context.location, safe='')}"


@hookimpl
def lmcache_kit_storage_backends() -> Iterable[StoragePlugin]:
    yield StoragePlugin(
        name="fsspec",
        summary="blobs on S3, GCS, SFTP or a folder, shared",
        location="RemoteBackend",
        factory=_shared,
        options=FsspecOptions,
        capabilities=frozenset({"persistent", "shared"}),
    )
    yield StoragePlugin(
        name="fsspec_private",
        summary="blobs on S3, GCS, SFTP or a folder, private",
        location="RemoteBackend",
        factory=_private,
        options=FsspecOptions,
        capabilities=frozenset({"persistent"}),
    )
    yield StoragePlugin(
        name="fsspec_memory",
        summary="blobs in fsspec's memory://, for trials",
        location="RemoteBackend",
        factory=_memory,
        options=MemoryOptions,
    )
