"""Workloads that come with the core."""

from __future__ import annotations

from typing import Literal

from lmcache_kit.builtin.workloads.options import (
    ClearOptions,
    CompletionsOptions,
    JobOptions,
    LookupOptions,
    MoveOptions,
    PinOptions,
)
from lmcache_kit.builtin.workloads.reuse_options import ReuseOptions
from lmcache_kit.builtin.workloads.traffic_options import TrafficOptions
from lmcache_kit.contracts.records import Options, Plugin, WorkloadPlugin
from lmcache_kit.contracts.workload import Workload

__all__ = ["RECORDS"]


def _completions(options: Options) -> Workload:
    from lmcache_kit.builtin.workloads.completions import CompletionsWorkload

    assert isinstance(options, CompletionsOptions)
    return CompletionsWorkload(options)


def _lookup(options: Options) -> Workload:
    from lmcache_kit.builtin.workloads.lookup import LookupWorkload

    assert isinstance(options, LookupOptions)
    return LookupWorkload(options)


def _compress(options: Options) -> Workload:
    from lmcache_kit.builtin.workloads.jobs import JobWorkload

    assert isinstance(options, JobOptions)
    return JobWorkload(options, "compress")


def _decompress(options: Options) -> Workload:
    from lmcache_kit.builtin.workloads.jobs import JobWorkload

    assert isinstance(options, JobOptions)
    return JobWorkload(options, "decompress")


def _move(options: Options) -> Workload:
    from lmcache_kit.builtin.workloads.move import MoveWorkload

    assert isinstance(options, MoveOptions)
    return MoveWorkload(options)


def _pin(options: Options) -> Workload:
    from lmcache_kit.builtin.workloads.keep import PinWorkload

    assert isinstance(options, PinOptions)
    return PinWorkload(options, release=False)


def _unpin(options: Options) -> Workload:
    from lmcache_kit.builtin.workloads.keep import PinWorkload

    assert isinstance(options, PinOptions)
    return PinWorkload(options, release=True)


def _clear(options: Options) -> Workload:
    from lmcache_kit.builtin.workloads.keep import ClearWorkload

    assert isinstance(options, ClearOptions)
    return ClearWorkload(options)


def _reuse(options: Options) -> Workload:
    from lmcache_kit.builtin.workloads.reuse import ReuseWorkload

    assert isinstance(options, ReuseOptions)
    return ReuseWorkload(options)


def _traffic(options: Options) -> Workload:
    from lmcache_kit.builtin.workloads.traffic import TrafficWorkload

    assert isinstance(options, TrafficOptions)
    return TrafficWorkload(options)


BOTH: frozenset[Literal["wall", "virtual"]] = frozenset({"wall", "virtual"})

RECORDS: tuple[Plugin, ...] = (
    WorkloadPlugin(
        name="completions",
        summary="complete prompts, time them, compare texts with an earlier run",
        options=CompletionsOptions,
        factory=_completions,
        clocks=BOTH,
    ),
    WorkloadPlugin(
        name="lookup",
        summary="look completed prompts up in the controller",
        options=LookupOptions,
        factory=_lookup,
        clocks=BOTH,
    ),
    WorkloadPlugin(
        name="compress",
        summary="compress the KV of completed prompts in a tier",
        options=JobOptions,
        factory=_compress,
        clocks=BOTH,
    ),
    WorkloadPlugin(
        name="decompress",
        summary="decompress the KV of completed prompts in a tier",
        options=JobOptions,
        factory=_decompress,
        clocks=BOTH,
    ),
    WorkloadPlugin(
        name="move",
        summary="move or copy prefixes to another tier or instance",
        options=MoveOptions,
        factory=_move,
        clocks=BOTH,
    ),
    WorkloadPlugin(
        name="pin",
        summary="keep completed prompts from eviction",
        options=PinOptions,
        factory=_pin,
        clocks=BOTH,
    ),
    WorkloadPlugin(
        name="unpin",
        summary="release pinned prompts",
        options=PinOptions,
        factory=_unpin,
        clocks=BOTH,
    ),
    WorkloadPlugin(
        name="clear",
        summary="drop everything unpinned from a tier",
        options=ClearOptions,
        factory=_clear,
        clocks=BOTH,
    ),
    WorkloadPlugin(
        name="reuse",
        summary="replay a trace's block ids through a cache of a given size, without instances or time",
        options=ReuseOptions,
        factory=_reuse,
        clocks=frozenset({"wall", "virtual"}),
    ),
    WorkloadPlugin(
        name="traffic",
        summary="play a trace or made-up requests as they arrive, routed and queued",
        options=TrafficOptions,
        factory=_traffic,
        clocks=frozenset({"wall", "virtual"}),
    ),
)
