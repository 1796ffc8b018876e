"""The scenario: what one YAML file declares.

Keys are strict, values are typed, and every field has its meaning in docs/reference/scenario.md. A plugin is named by
``kind``; what it takes stands under ``options``, except for workloads, whose options stand beside ``name`` and
``kind``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

__all__ = [
    "ControllerSpec",
    "EngineSpec",
    "FaultSpec",
    "FullTierSpec",
    "InstanceDefaults",
    "InstanceSpec",
    "LauncherSpec",
    "LinkSpec",
    "PartitionSpec",
    "PlacementSpec",
    "Scenario",
    "SlowLinkSpec",
    "TierSpec",
    "TransportSpec",
    "WorkloadSpec",
]

Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(gt=0)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]
Size = str | int
Options = dict[str, Any]
Scalar = bool | int | float | str | None


class _Strict(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    pass


class LauncherSpec(_Strict, kw_only=True, frozen=True):
    """Where the processes live."""

    kind: str = "local"
    options: Options = {}


class ControllerSpec(_Strict, kw_only=True, frozen=True):
    """The controller. Port 0 means a free one; ``monitor_port`` P takes P, P+1 and P+2."""

    host: str = "127.0.0.1"
    port: Port = 0
    monitor_port: Port = 0


class EngineSpec(_Strict, kw_only=True, frozen=True):
    """The inference engine of an instance. ``args`` are arguments for an engine that is a server of its own."""

    kind: str
    model: str = ""
    options: Options = {}
    args: list[str | int | float] = []


class TierSpec(_Strict, kw_only=True, frozen=True):
    """One storage tier; tiers are ordered, fastest first. ``capacity`` left out means unbounded.

    ``method`` is the compression method of what completions write to it.
    """

    kind: str
    location: str | None = None
    capacity: Size | None = None
    eviction: str = "lru"
    eviction_options: Options = {}
    method: str | None = None
    options: Options = {}


class PlacementSpec(_Strict, kw_only=True, frozen=True):
    """Which tiers hold an object."""

    kind: str = "broadcast"
    options: Options = {}


class TransportSpec(_Strict, kw_only=True, frozen=True):
    """How an instance exchanges chunks with others; ``bandwidth`` and ``latency`` shape every link that has none of
    its own."""

    kind: str = "zmq"
    bandwidth: str | None = None
    latency: str | float | None = None
    options: Options = {}


class ReporterSpec(_Strict, kw_only=True, frozen=True):
    """A reporter whose file is written."""

    kind: str
    options: Options = {}


class InstanceDefaults(_Strict, kw_only=True, frozen=True):
    """What instances share unless they say otherwise. ``methods`` are options of compression methods, by name."""

    engine: EngineSpec | None = None
    chunk_size: Annotated[int, Meta(ge=1)] = 256
    hash_algorithm: str = "builtin"
    save_unfull_chunk: bool = True
    tiers: Annotated[list[TierSpec], Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: [TierSpec(kind="memory", capacity="256MiB")]
    )
    placement: PlacementSpec = msgspec.field(default_factory=PlacementSpec)
    transport: TransportSpec = msgspec.field(default_factory=TransportSpec)
    methods: dict[str, Options] = {}
    max_num_seqs: Annotated[int, Meta(ge=1)] = 16
    config: Options = {}
    env: dict[str, str] = {}


class InstanceSpec(InstanceDefaults, kw_only=True, frozen=True):
    """One instance, or ``count`` of them called ``id-0``, ``id-1`` and so on. Port 0 means a free one."""

    id: Name
    count: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    port: Port = 0
    worker_port: Port = 0
    peer_port: Port = 0


class LinkSpec(_Strict, kw_only=True, frozen=True):
    """The link between two instances, both ways."""

    between: tuple[str, str]
    bandwidth: str | None = None
    latency: str | float | None = None


class SlowLinkSpec(_Strict, kw_only=True, frozen=True):
    """What becomes of the link between two instances, both ways; what is left out stays as it is."""

    between: tuple[str, str]
    bandwidth: str | None = None
    latency: str | float | None = None


class PartitionSpec(_Strict, kw_only=True, frozen=True):
    """Two instances, or an instance and ``controller``, that do not reach each other."""

    between: tuple[str, str]


class FullTierSpec(_Strict, kw_only=True, frozen=True):
    """A tier of an instance that takes nothing new; reads go on."""

    instance: str
    location: str


class FaultSpec(_Strict, kw_only=True, frozen=True):
    """One fault: exactly one of ``kill``, ``restart``, ``slow_link``, ``partition`` and ``full_tier``.

    ``at`` counts from the moment when the whole fleet is ready, or from the start of the workload named by ``after``.
    ``for`` is how long it lasts, for the last three; left out, to the end of the run.
    """

    at: str | float
    after: str | None = None
    kill: str | None = None
    restart: str | None = None
    slow_link: SlowLinkSpec | None = None
    partition: PartitionSpec | None = None
    full_tier: FullTierSpec | None = None
    duration: str | float | None = msgspec.field(name="for", default=None)


class WorkloadSpec(_Strict, kw_only=True, frozen=True):
    """One workload. In YAML its options stand beside ``name`` and ``kind``."""

    name: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
    kind: str
    options: Options = {}


class Scenario(_Strict, kw_only=True, frozen=True):
    """A fleet, what happens to it, and what must come out.

    ``base_dir`` is the folder that relative paths start from; left out, the folder of the scenario's file. ``costs`` is
    what things cost under the virtual clock: a file, or a mapping; docs/reference/simulator.md has its keys. Without
    ``events`` nothing is written to events.jsonl. ``startup_timeout`` left out depends on the engines.
    """

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)]
    summary: str = ""
    clock: Literal["wall", "virtual"] = "wall"
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0
    base_dir: str | None = None
    launcher: LauncherSpec = msgspec.field(default_factory=LauncherSpec)
    startup_timeout: Seconds | None = None
    controller: ControllerSpec = msgspec.field(default_factory=ControllerSpec)
    instance_defaults: InstanceDefaults = msgspec.field(default_factory=InstanceDefaults)
    instances: Annotated[list[InstanceSpec], Meta(min_length=1)]
    links: list[LinkSpec] = []
    costs: str | Options | None = None
    faults: list[FaultSpec] = []
    workloads: Annotated[list[WorkloadSpec], Meta(min_length=1)]
    expect: dict[str, Scalar] = {}
    events: bool = True
    reporters: list[ReporterSpec] = msgspec.field(default_factory=lambda: [ReporterSpec(kind="html")])
