"""What an instance's configuration says, typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmcache_kit.instance.worker.addresses import Address
from lmcache_kit.kv.hashing import HashSpec

__all__ = ["ControllerSpec", "InstanceConfig", "LinkSpec", "PeerSpec", "PluginSpec", "TierSpec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginSpec:
    """A plugin's name and its options as plain values."""

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSpec:
    """One tier.

    Args:
        storage: the storage plugin.
        location: its name, or None for the plugin's own.
        capacity_bytes: capacity, or None for unbounded.
        eviction: the eviction policy.
        method: compression method of what is written to it; None for ``InstanceConfig.store_method``.
    """

    storage: PluginSpec
    location: str | None = None
    capacity_bytes: int | None = None
    eviction: PluginSpec = PluginSpec(kind="lru")
    method: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerSpec:
    """How the instance joins a controller.

    Args:
        pull: the controller's PULL socket.
        reply: the controller's reply socket.
        worker_id: id under which the worker registers.
        worker_port: port of the control socket, 0 to let the system choose.
        heartbeat_seconds: interval of heartbeats, 0 for none.
        first_heartbeat_seconds: from registration to the first heartbeat.
        advertise_host: host announced to the controller, or None to find it by the route.
        control_host: host that the control socket binds, or None to derive it.
        max_pending_operations: cache changes kept while the controller is away.
    """

    pull: Address
    reply: Address
    worker_id: int = 0
    worker_port: int = 0
    heartbeat_seconds: float = 5.0
    first_heartbeat_seconds: float = 1.0
    advertise_host: str | None = None
    control_host: str | None = None
    max_pending_operations: int = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSpec:
    """Shape of a link: bytes per second (None: unshaped) and seconds."""

    bandwidth: float | None = None
    latency: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSpec:
    """How chunks go to and come from other instances.

    Args:
        transport: the transport plugin.
        address: address to listen on as it was written, or None to make one from ``host`` and ``port``.
        host: host to listen on, None for the interface on the way to the controller.
        port: port, 0 to let the system choose.
        serve: whether the peer server opens.
        timeout: deadline of one exchange, in seconds.
        default_link: shape of links that are not in ``links``.
        links: shape by the peer's URL.
    """

    transport: PluginSpec = PluginSpec(kind="zmq")
    address: str | None = None
    host: str | None = None
    port: int = 0
    serve: bool = False
    timeout: float = 10.0
    default_link: LinkSpec | None = None
    links: Mapping[str, LinkSpec] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceConfig:
    """Everything an instance is told by its configuration.

    Args:
        instance_id: name of the instance.
        hash_spec: how tokens become chunk keys.
        tiers: fastest first.
        placement: the placement policy.
        store_method: compression method that chunks are stored with.
        methods: options of compression methods, by name.
        min_retrieve_tokens: shorter hits are computed again.
        save_decode_cache: whether KV of generated tokens is stored.
        retrieve_locations: tiers that completions read, or None for all.
        store_location: the only tier that completions write, or None for all that the placement chooses.
        pin_ttl: seconds that a pin without a time to live holds; None: until released.
        controller: how to join a controller, or None.
        peer: how to exchange chunks with other instances.
        data_dir: folder of the instance's files.
        base_dir: folder that relative paths of the configuration start at.
        threads: threads for storage and compression.
        event_log: file that takes one JSON line per decision of the cache, or None.
        warnings: one sentence per key that has no effect here, naming it.
        values: every LMCache key's value in force, by name.
    """

    instance_id: str
    hash_spec: HashSpec
    tiers: tuple[TierSpec, ...]
    placement: PluginSpec
    store_method: str
    methods: Mapping[str, Mapping[str, Any]]
    min_retrieve_tokens: int
    save_decode_cache: bool
    retrieve_locations: tuple[str, ...] | None
    store_location: str | None
    pin_ttl: float | None
    controller: ControllerSpec | None
    peer: PeerSpec
    data_dir: Path
    base_dir: Path
    threads: int
    event_log: Path | None
    warnings: tuple[str, ...]
    values: Mapping[str, Any]
