"""Workloads: what a scenario does to the fleet it booted, and measures.

A workload talks to the fleet as any client would, over HTTP, and returns one result. It runs on the runner's event
loop, so what blocks belongs into a thread. Times are in seconds, sizes in bytes.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from lmcache_kit.client import ControllerClient, InstanceClient
    from lmcache_kit.clock import Clock

__all__ = ["EventSink", "InstanceHandle", "Workload", "WorkloadContext", "WorkloadResult"]


class EventSink(Protocol):
    """Takes one event for ``events.jsonl``; the runner adds the time and the workload's name."""

    def __call__(self, event: str, **facts: Any) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceHandle:
    """A running instance.

    Args:
        instance_id: its id.
        url: its HTTP address.
        client: a client of it.
        locations: its tiers, fastest first.
        model: the model that it serves.
        chunk_size: tokens per chunk; None: not known.
        server: whether its engine is a server of its own, such as vLLM: its metrics may be older than its last answer.
    """

    instance_id: str
    url: str
    client: InstanceClient
    locations: tuple[str, ...]
    model: str
    chunk_size: int | None = None
    server: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadResult:
    """One entry of the report's ``results``: ``values`` are JSON values under stable names with units in the name."""

    name: str
    kind: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadContext:
    """What a workload may use.

    Args:
        name: the name its result must have.
        controller: client of the fleet's controller.
        instances: by instance id, in the scenario's order.
        clock: the run's clock; what a workload measures is a difference of its readings.
        rng: the only source of randomness; seeded from the scenario.
        base_dir: folder that relative paths of the scenario start from.
        earlier: results of the workloads that ran before, by name.
        notes: a place where workloads leave what later ones need (texts, tokens), by workload name.
        emit: records an event.
        progress: shows one line to the user.
    """

    name: str
    controller: ControllerClient
    instances: Mapping[str, InstanceHandle]
    clock: Clock
    rng: random.Random
    base_dir: Path
    earlier: Mapping[str, WorkloadResult]
    notes: dict[str, Any]
    emit: EventSink
    progress: Callable[[str], None]


class Workload(ABC):
    """One configured workload."""

    @abstractmethod
    async def run(self, context: WorkloadContext) -> WorkloadResult:
        """Do the work and measure it. Raises LMCacheKitError when it cannot be done at all."""

    def needs(self) -> Sequence[str]:
        """Names of earlier workloads that must have run; checked before anything boots."""
        return ()

    def references(self) -> Sequence[tuple[str, str]]:
        """``(what, name)`` of the other things that its options name: an ``instance``, a ``location`` or a plugin
        kind such as ``compression``; checked before anything boots."""
        return ()

    def configures(self) -> Sequence[tuple[str, str, Mapping[str, Any]]]:
        """``(kind, name, options)`` of the plugins that it makes itself, with their options as plain values, such as
        the reader of a trace; checked before anything boots."""
        return ()
