"""The part of a configuration that is about the controller and about other instances."""

from __future__ import annotations

from lmcache_kit.errors import ConfigError
from lmcache_kit.instance.config.extension import SECTION, Extension, LinkOptions
from lmcache_kit.instance.config.model import ControllerSpec, LinkSpec, PeerSpec, PluginSpec
from lmcache_kit.instance.config.settings import Settings
from lmcache_kit.instance.config.values import shown
from lmcache_kit.instance.worker.addresses import Address, host_of, parse_address
from lmcache_kit.units import parse_bandwidth, parse_duration

__all__ = ["resolve_controller", "resolve_peer"]

DEFAULT_HEARTBEAT_SECONDS = 5.0
FIRST_HEARTBEAT_SECONDS = 1.0
"""Soon: an instance that dies before its first heartbeat is not missed by the controller."""

_FOREIGN_CHANNELS = ("nixl", "mock_memory")
_DEFAULT_TRANSPORT = "zmq"


def _port(settings: Settings, name: str) -> int:
    ports = settings.value(name) or [0]
    if not 0 <= ports[0] <= 65535:
        raise ConfigError(f"{name}: {shown(ports[0])} is not a port", hint="use a number from 0 to 65535")
    return int(ports[0])


def resolve_controller(settings: Settings, extension: Extension) -> ControllerSpec | None:
    if not settings.value("enable_controller"):
        return None
    url = settings.value("controller_pull_url")
    if not url:
        raise ConfigError(
            "controller_pull_url is missing, and enable_controller is true",
            hint='e.g. controller_pull_url: "localhost:9001", where the controller has --monitor-port 9001',
        )
    pull = parse_address(settings.spelled["controller_pull_url"], url)
    reply_url = settings.value("controller_reply_url")
    if reply_url:
        reply = parse_address("controller_reply_url", reply_url)
    elif pull.port == 65535:
        raise ConfigError("controller_reply_url is missing, and there is no port after that of controller_pull_url")
    else:
        reply = Address(pull.host, pull.port + 1)
    ids = settings.value("lmcache_worker_ids") or [0]
    if not 0 <= ids[0] < 2**31:
        raise ConfigError(f"lmcache_worker_ids: {shown(ids[0])} is not a worker id", hint="use 0, 1, ...")
    if len(ids) > 1:
        settings.warnings.append(
            f"{settings.spelled['lmcache_worker_ids']}: only {ids[0]} is used; there is one worker per instance"
        )
    interval = DEFAULT_HEARTBEAT_SECONDS
    if settings.is_set("lmcache_worker_heartbeat_time"):
        interval = float(settings.at_least("lmcache_worker_heartbeat_time", 0))
    delay = min(interval, FIRST_HEARTBEAT_SECONDS)
    if settings.is_set("lmcache_worker_heartbeat_delay_time"):
        delay = float(settings.at_least("lmcache_worker_heartbeat_delay_time", 0))
    host = extension.advertise_host
    return ControllerSpec(
        pull=pull,
        reply=reply,
        worker_id=ids[0],
        worker_port=_port(settings, "lmcache_worker_ports"),
        heartbeat_seconds=interval,
        first_heartbeat_seconds=delay,
        advertise_host=host_of(f"{SECTION}.advertise_host", host) if host else None,
        control_host=host_of(f"{SECTION}.control_host", extension.control_host, any_host="*")
        if extension.control_host
        else None,
        max_pending_operations=extension.max_pending_operations,
    )


def resolve_peer(settings: Settings, extension: Extension, *, joins: bool) -> PeerSpec:
    channel: str = settings.value("transfer_channel") or _DEFAULT_TRANSPORT
    if channel in _FOREIGN_CHANNELS:
        settings.warnings.append(
            f"{settings.spelled['transfer_channel']}: there is no {channel} here; {_DEFAULT_TRANSPORT} is used"
        )
        channel = _DEFAULT_TRANSPORT
    transport = extension.transport
    host: str | None = None
    port, given = 0, transport.address is not None
    if settings.is_set("distributed_url"):
        old = parse_address("distributed_url", settings.value("distributed_url"), any_host="0.0.0.0", port_zero=True)
        host, port, given = old.host, old.port, True
    if settings.value("p2p_host"):
        host = host_of("p2p_host", settings.value("p2p_host"), any_host="0.0.0.0")
    if settings.value("p2p_init_ports"):
        port, given = _port(settings, "p2p_init_ports"), True
    shape = LinkOptions(bandwidth=transport.bandwidth, latency=transport.latency)
    return PeerSpec(
        transport=PluginSpec(kind=transport.kind or channel, options=transport.options),
        address=transport.address,
        host=host,
        port=port,
        serve=given or joins,
        timeout=float(settings.at_least("blocking_timeout_secs", 1)),
        default_link=_link("transport", shape) if shape != LinkOptions() else None,
        links={url: _link(f"links[{url!r}]", link) for url, link in extension.links.items()},
    )


def _link(path: str, link: LinkOptions) -> LinkSpec:
    try:
        return LinkSpec(
            bandwidth=None if link.bandwidth is None else parse_bandwidth(link.bandwidth),
            latency=0.0 if link.latency is None else parse_duration(link.latency),
        )
    except (ConfigError, ValueError) as error:
        hint = error.hint if isinstance(error, ConfigError) else None
        what = error.message if isinstance(error, ConfigError) else str(error)
        raise ConfigError(f"{SECTION}.{path}: {what}", hint=hint) from None
