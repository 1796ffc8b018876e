"""The plugins that come with the core, registered by the same call as anyone's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lmcache_kit.hookspecs import hookimpl

if TYPE_CHECKING:
    from lmcache_kit.contracts.records import CompressionPlugin, EvictionPlugin, PlacementPlugin, StoragePlugin

__all__ = [
    "lmcache_kit_compression_methods",
    "lmcache_kit_eviction_policies",
    "lmcache_kit_placement_policies",
    "lmcache_kit_storage_backends",
]


@hookimpl
def lmcache_kit_storage_backends() -> Iterable[StoragePlugin]:
    from lmcache_kit.builtin.storage import RECORDS

    yield from RECORDS


@hookimpl
def lmcache_kit_compression_methods() -> Iterable[CompressionPlugin]:
    from lmcache_kit.builtin.compression import RECORDS

    yield from RECORDS


@hookimpl
def lmcache_kit_eviction_policies() -> Iterable[EvictionPlugin]:
    from lmcache_kit.builtin.eviction import RECORDS

    yield from RECORDS


@hookimpl
def lmcache_kit_placement_policies() -> Iterable[PlacementPlugin]:
    from lmcache_kit.builtin.placement import RECORDS

    yield from RECORDS
