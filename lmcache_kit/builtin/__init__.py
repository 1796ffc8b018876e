"""The plugins that come with the core, registered by the same call as anyone's.

Each area lists its records in ``RECORDS``; importing an area costs little, for the factories import what they need.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lmcache_kit.hookspecs import hookimpl

if TYPE_CHECKING:
    from lmcache_kit.contracts.records import Plugin

__all__ = [
    "lmcache_kit_compression_methods",
    "lmcache_kit_engines",
    "lmcache_kit_eviction_policies",
    "lmcache_kit_launchers",
    "lmcache_kit_placement_policies",
    "lmcache_kit_reporters",
    "lmcache_kit_storage_backends",
    "lmcache_kit_trace_readers",
    "lmcache_kit_transports",
    "lmcache_kit_workloads",
]


@hookimpl
def lmcache_kit_storage_backends() -> Iterable[Plugin]:
    from lmcache_kit.builtin.storage import RECORDS

    return RECORDS


@hookimpl
def lmcache_kit_compression_methods() -> Iterable[Plugin]:
    from lmcache_kit.builtin.compression import RECORDS

    return RECORDS


@hookimpl
def lmcache_kit_transports() -> Iterable[Plugin]:
    from lmcache_kit.builtin.transports import RECORDS

    return RECORDS


@hookimpl
def lmcache_kit_engines() -> Iterable[Plugin]:
    from lmcache_kit.builtin.engines import RECORDS

    return RECORDS


@hookimpl
def lmcache_kit_eviction_policies() -> Iterable[Plugin]:
    from lmcache_kit.builtin.eviction import RECORDS

    return RECORDS


@hookimpl
def lmcache_kit_placement_policies() -> Iterable[Plugin]:
    from lmcache_kit.builtin.placement import RECORDS

    return RECORDS


@hookimpl
def lmcache_kit_workloads() -> Iterable[Plugin]:
    from lmcache_kit.builtin.workloads import RECORDS

    return RECORDS


@hookimpl
def lmcache_kit_trace_readers() -> Iterable[Plugin]:
    from lmcache_kit.builtin.traces import RECORDS

    return RECORDS


@hookimpl
def lmcache_kit_launchers() -> Iterable[Plugin]:
    from lmcache_kit.builtin.launchers import RECORDS

    return RECORDS


@hookimpl
def lmcache_kit_reporters() -> Iterable[Plugin]:
    from lmcache_kit.builtin.reporters import RECORDS

    return RECORDS
