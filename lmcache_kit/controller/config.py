"""Settings of a controller process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import yaml

from lmcache_kit.errors import ConfigError, nearest
from lmcache_kit.kv.hashing import HashSpec, default_none_hash

__all__ = ["ControllerConfig", "MonitorPorts", "parse_monitor_ports", "read_config_file"]


@dataclass(frozen=True, slots=True)
class MonitorPorts:
    """ZeroMQ ports for workers; 0 lets the system choose, None leaves a socket out."""

    pull: int = 9001
    reply: int | None = 9002
    heartbeat: int | None = 9003

    @classmethod
    def following(cls, port: int) -> MonitorPorts:
        """Pull on ``port``, reply and heartbeat on the two after it; three free ones for 0."""
        return cls(port, port and port + 1, port and port + 2)


def _default_spec() -> HashSpec:
    return HashSpec(none_hash=default_none_hash("builtin"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerConfig:
    """All settings. Raises ConfigError, naming the flag to change, for values that cannot work.

    Args:
        host: address that every socket binds; ``localhost`` is 127.0.0.1.
        port: HTTP port; 0 lets the system choose.
        monitor: ZeroMQ ports.
        token: bearer token that every HTTP request must carry, except GET /health; None for none.
        max_body_bytes: largest HTTP body.
        worker_timeout: seconds without a heartbeat until a worker counts as dead; None never.
        check_interval: seconds between two looks for such workers.
        call_timeout: seconds that a worker has to answer a call.
        sync_timeout: seconds without a batch until a full sync is asked for again.
        default_spec: how workers that announce nothing (LMCache's) name their chunks.
    """

    host: str = "127.0.0.1"
    port: int = 9000
    monitor: MonitorPorts = field(default_factory=MonitorPorts)
    token: str | None = None
    max_body_bytes: int = 16 * 2**20
    worker_timeout: float | None = 60.0
    check_interval: float = 1.0
    call_timeout: float = 10.0
    sync_timeout: float = 30.0
    default_spec: HashSpec = field(default_factory=_default_spec)

    def __post_init__(self) -> None:
        if not self.host:
            raise ConfigError("the host is empty", hint="give --host an address such as 127.0.0.1 or 0.0.0.0")
        ports: dict[int, str] = {}
        for flag, port in self.ports():
            if not 0 <= port <= 65535:
                raise ConfigError(f"{port} is not a port", hint=f"give {flag} a number from 0 to 65535")
            if port and port in ports:
                raise ConfigError(f"port {port} is used twice", hint=f"change {ports[port]} or {flag}")
            ports[port] = flag
        for flag, seconds in (
            ("--worker-timeout", 1.0 if self.worker_timeout is None else self.worker_timeout),
            ("--call-timeout", self.call_timeout),
            ("--health-check-interval", self.check_interval),
        ):
            if not 0 < seconds < float("inf"):
                raise ConfigError(f"{flag} must be above 0 seconds, got {seconds:g}")
        if self.max_body_bytes < 1:
            raise ConfigError(f"--max-body-size must be above 0 bytes, got {self.max_body_bytes}")
        if self.token is not None and (not self.token or not self.token.isascii() or not self.token.isprintable()):
            raise ConfigError("the token must be printable ASCII text", hint="check --token and LMCACHE_KIT_TOKEN")

    def ports(self) -> list[tuple[str, int]]:
        """``(flag, port)`` of every socket that will be bound: HTTP, pull, reply, heartbeat."""
        monitor = self.monitor
        found = [("--port", self.port), ("--monitor-port", monitor.pull)]
        found += [("--monitor-port", port) for port in (monitor.reply, monitor.heartbeat) if port is not None]
        return found

    @property
    def bind_host(self) -> str:
        """The host as sockets bind it."""
        # "localhost" may mean ::1 for one library and 127.0.0.1 for another; the sockets must agree.
        return "127.0.0.1" if self.host == "localhost" else self.host


def parse_monitor_ports(value: str | Mapping[str, Any]) -> MonitorPorts:
    """Ports from LMCache's JSON, e.g. ``{"pull": 8300, "reply": 8400, "heartbeat": null}``. Raises ConfigError."""
    example = 'write it like {"pull": 8300, "reply": 8400, "heartbeat": 8500}'
    try:
        found = msgspec.json.decode(value) if isinstance(value, str) else value
    except msgspec.DecodeError as error:
        raise ConfigError(f"--monitor-ports is not JSON: {error}", hint=example) from None
    if not isinstance(found, Mapping) or "pull" not in found:
        raise ConfigError("--monitor-ports names no pull port", hint=example)
    for name, port in found.items():
        if name not in ("pull", "reply", "heartbeat"):
            near = nearest(str(name), ("pull", "reply", "heartbeat"))
            raise ConfigError(
                f"--monitor-ports has an unknown entry {name!r}", hint=f"did you mean {near!r}?" if near else example
            )
        if not (port is None and name != "pull") and (not isinstance(port, int) or isinstance(port, bool)):
            raise ConfigError(f"--monitor-ports: {name} must be a port number, got {port!r}", hint=example)
    return MonitorPorts(found["pull"], found.get("reply"), found.get("heartbeat"))


class _File(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """LMCache's controller configuration file."""

    controller_host: str | None = None
    controller_port: int | None = None
    controller_monitor_ports: dict[str, int | None] | str | None = None
    health_check_interval: float | None = None
    lmcache_worker_timeout: float | None = None


def read_config_file(path: Path) -> dict[str, Any]:
    """The settings of an LMCache controller configuration file, by the names of that file. Raises ConfigError."""
    try:
        loaded = yaml.safe_load(path.read_text())
        settings = msgspec.convert({} if loaded is None else loaded, _File)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, msgspec.ValidationError) as error:
        known = ", ".join(_File.__struct_fields__)
        raise ConfigError(f"{path}: {error}", hint=f"known settings: {known}") from None
    return {name: value for name, value in msgspec.structs.asdict(settings).items() if value is not None}
