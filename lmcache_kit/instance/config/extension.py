"""Our own settings inside an LMCache configuration: the strict mapping ``extra_config.lmcache_kit``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from lmcache_kit.errors import ConfigError, nearest

__all__ = ["SECTION", "Extension", "LinkOptions", "TierOptions", "TransportOptions", "read_extension"]

SECTION = "extra_config.lmcache_kit"

Options = dict[str, Any]
Size = str | int | float
Host = Annotated[str, Meta(min_length=1, max_length=253)]


class _Strict(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    pass


class TierOptions(_Strict, frozen=True):
    """One tier.

    Args:
        kind: name of a storage plugin.
        location: name under which the controller lists it; the plugin's own when left out.
        capacity: bytes, or a size like ``64MiB``; left out: unbounded.
        eviction: name of an eviction policy; ``cache_policy`` when left out.
        eviction_options: options of the eviction policy.
        method: compression method of what a completion writes to this tier; ``store_method`` when left out. Copies from
            another tier keep the method that they are in.
        options: options of the storage plugin.
    """

    kind: str
    location: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    capacity: Size | None = None
    eviction: str | None = None
    eviction_options: Options = {}
    method: str | None = None
    options: Options = {}


class TransportOptions(_Strict, frozen=True):
    """How chunks go to and come from other instances.

    Args:
        kind: name of a transport plugin; overrides ``transfer_channel``.
        address: address to listen on, ``scheme://rest``; made from ``p2p_host`` and ``p2p_init_ports`` when left out.
        bandwidth: bandwidth of links that have none of their own, e.g. ``1Gbps``; left out: unshaped.
        latency: latency of links that have none of their own, e.g. ``2ms``.
        options: options of the transport plugin.
    """

    kind: str | None = None
    address: str | None = None
    bandwidth: str | None = None
    latency: str | float | None = None
    options: Options = {}


class LinkOptions(_Strict, frozen=True):
    """Shape of the link to one peer.

    Args:
        bandwidth: e.g. ``1Gbps`` (bits) or ``100MB/s`` (bytes); left out: unshaped.
        latency: e.g. ``2ms``, one way.
    """

    bandwidth: str | None = None
    latency: str | float | None = None


class Extension(_Strict, frozen=True):
    """All of our own settings.

    Args:
        tiers: the tiers, fastest first; takes the place of ``local_cpu``, ``local_disk`` and ``remote_url``.
        placement: name of a placement policy.
        placement_options: options of the placement policy.
        store_method: compression method that chunks are stored with.
        methods: options of compression methods, by method name.
        transport: how chunks go to and come from other instances.
        links: shape of the link to a peer, by the peer's URL.
        none_hash: hash before the first chunk; from ``PYTHONHASHSEED`` when left out.
        data_dir: folder of this instance's files; ``lmcache-kit/<instance>`` in the user's cache folder when left out.
        advertise_host: host that the controller reaches this instance under; found by the route when left out.
        control_host: host that the control socket binds; loopback when the advertised host is, else every interface.
        threads: threads for storage and compression.
        max_pending_operations: cache changes kept while the controller is away, before a full sync replaces them.
        event_log: file that takes one JSON line per decision of the cache; none when left out.
    """

    tiers: list[TierOptions] | None = None
    placement: str = "broadcast"
    placement_options: Options = {}
    store_method: str = "naive"
    methods: dict[str, Options] = {}
    transport: TransportOptions = msgspec.field(default_factory=TransportOptions)
    links: dict[str, LinkOptions] = {}
    none_hash: int | None = None
    data_dir: str | None = None
    advertise_host: Host | None = None
    control_host: Host | None = None
    threads: Annotated[int, Meta(ge=1, le=256)] = 2
    max_pending_operations: Annotated[int, Meta(ge=1)] = 100_000
    event_log: Annotated[str, Meta(min_length=1)] | None = None


_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*?)`(?: - at `\$(?P<path>.*)`)?", re.DOTALL)
_LOCATED = re.compile(r"(?P<what>.*) - at `\$(?P<path>.*)`", re.DOTALL)


def _fields() -> Iterator[str]:
    for struct in (Extension, TierOptions, TransportOptions, LinkOptions):
        yield from struct.__struct_fields__


def read_extension(values: object) -> Extension:
    """The settings of a plain mapping. Raises ConfigError with the path of what is wrong, and the nearest known key."""
    try:
        return msgspec.convert(values, Extension)
    except msgspec.ValidationError as error:
        unknown = _UNKNOWN.fullmatch(str(error))
        if unknown is not None:
            near = nearest(unknown["name"], _fields())
            raise ConfigError(
                f"{SECTION}{unknown['path'] or ''}: unknown key {unknown['name']!r}",
                hint=f"did you mean {near!r}?" if near else "see docs/reference/configuration.md",
            ) from None
        located = _LOCATED.fullmatch(str(error))
        path, what = (located["path"], located["what"]) if located else ("", str(error))
        raise ConfigError(f"{SECTION}{path}: {what}") from None
    except (TypeError, RecursionError) as error:  # values that no YAML text has, e.g. from a caller's mapping
        raise ConfigError(f"{SECTION}: {error}") from None
