"""The whole extension surface: one hook per kind of plugin.

A plugin module implements any of these hooks with :data:`hookimpl` and names itself under the entry point group
``lmcache_kit``. Each hook returns records; nothing heavy may happen before a record's factory is called.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from lmcache_kit.contracts.records import (
        CompressionPlugin,
        EnginePlugin,
        EvictionPlugin,
        LauncherPlugin,
        PlacementPlugin,
        ReporterPlugin,
        StoragePlugin,
        TracePlugin,
        TransportPlugin,
        WorkloadPlugin,
    )

__all__ = ["ENTRY_POINT_GROUP", "PROJECT_NAME", "hookimpl", "hookspec"]

PROJECT_NAME = "lmcache_kit"
ENTRY_POINT_GROUP = "lmcache_kit"

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


@hookspec
def lmcache_kit_storage_backends() -> Iterable[StoragePlugin]:  # type: ignore[empty-body]
    """Offer storage backends.

    .. code-block:: python

        @hookimpl
        def lmcache_kit_storage_backends():
            yield StoragePlugin(
                name="scratch",
                summary="files in a folder of the instance",
                location="ScratchBackend",
                factory=lambda options, context: ScratchBackend(context.data_dir / "scratch"),
                capabilities=frozenset({"persistent"}),
            )
    """


@hookspec
def lmcache_kit_compression_methods() -> Iterable[CompressionPlugin]:  # type: ignore[empty-body]
    """Offer compression methods.

    .. code-block:: python

        @hookimpl
        def lmcache_kit_compression_methods():
            yield CompressionPlugin(
                name="lzma",
                summary="lossless, slow, small",
                factory=lambda options: LzmaMethod(),
                capabilities=frozenset({"lossless", "deterministic"}),
            )
    """


@hookspec
def lmcache_kit_transports() -> Iterable[TransportPlugin]:  # type: ignore[empty-body]
    """Offer transports.

    .. code-block:: python

        @hookimpl
        def lmcache_kit_transports():
            yield TransportPlugin(
                name="pipe",
                summary="through a named pipe on one host",
                scheme="pipe",
                factory=lambda options: PipeTransport(),
                capabilities=frozenset({"same_host"}),
            )
    """


@hookspec
def lmcache_kit_engines() -> Iterable[EnginePlugin]:  # type: ignore[empty-body]
    """Offer inference engines.

    .. code-block:: python

        @hookimpl
        def lmcache_kit_engines():
            yield EnginePlugin(
                name="parrot",
                summary="repeats the prompt",
                factory=lambda options, model: ParrotEngine(model),
            )
    """


@hookspec
def lmcache_kit_eviction_policies() -> Iterable[EvictionPlugin]:  # type: ignore[empty-body]
    """Offer eviction policies.

    .. code-block:: python

        @hookimpl
        def lmcache_kit_eviction_policies():
            yield EvictionPlugin(
                name="largest_first",
                summary="evicts the largest object",
                factory=lambda options, capacity_bytes: LargestFirst(),
            )
    """


@hookspec
def lmcache_kit_placement_policies() -> Iterable[PlacementPlugin]:  # type: ignore[empty-body]
    """Offer placement policies.

    .. code-block:: python

        @hookimpl
        def lmcache_kit_placement_policies():
            yield PlacementPlugin(
                name="bottom_only",
                summary="writes to the slowest tier only",
                factory=lambda options: BottomOnly(),
            )
    """


@hookspec
def lmcache_kit_workloads() -> Iterable[WorkloadPlugin]:  # type: ignore[empty-body]
    """Offer workloads.

    .. code-block:: python

        @hookimpl
        def lmcache_kit_workloads():
            yield WorkloadPlugin(
                name="count_workers",
                summary="asks the controller how many workers it knows",
                factory=lambda options: CountWorkers(),
            )
    """


@hookspec
def lmcache_kit_trace_readers() -> Iterable[TracePlugin]:  # type: ignore[empty-body]
    """Offer trace readers.

    .. code-block:: python

        @hookimpl
        def lmcache_kit_trace_readers():
            yield TracePlugin(
                name="lengths_csv",
                summary="input and output lengths, one request per line",
                factory=lambda options: LengthsCsv(),
            )
    """


@hookspec
def lmcache_kit_launchers() -> Iterable[LauncherPlugin]:  # type: ignore[empty-body]
    """Offer launchers.

    .. code-block:: python

        @hookimpl
        def lmcache_kit_launchers():
            yield LauncherPlugin(
                name="nice",
                summary="local processes at low priority",
                factory=lambda options: NiceLauncher(),
            )
    """


@hookspec
def lmcache_kit_reporters() -> Iterable[ReporterPlugin]:  # type: ignore[empty-body]
    """Offer reporters.

    .. code-block:: python

        @hookimpl
        def lmcache_kit_reporters():
            yield ReporterPlugin(
                name="names",
                summary="the names of the results, one per line",
                factory=lambda options: NamesReporter(),
            )
    """
