"""``host:port`` addresses as LMCache's configuration writes them."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass

from lmcache_kit.errors import ConfigError

__all__ = ["Address", "host_of", "is_loopback", "parse_address", "route_to"]

_ADDRESS = re.compile(
    r"(?:(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://)?(?P<host>\[[^\]]*\]|[^:/\[\]]*):(?P<port>[0-9]{1,5})/?"
)
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9._-]+)?")
_ANY = frozenset({"", "*", "0.0.0.0", "::"})


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port; ``localhost`` was already replaced by 127.0.0.1.

    ZeroMQ would resolve ``localhost`` to ::1 on some systems while the other side listens on IPv4 only.
    """

    host: str
    port: int

    @property
    def text(self) -> str:
        """``host:port`` with brackets around an IPv6 host."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def endpoint(self) -> str:
        """The ZeroMQ endpoint, ``tcp://host:port``."""
        return f"tcp://{self.text}"


def parse_address(name: str, text: str, *, any_host: str | None = None, port_zero: bool = False) -> Address:
    """The address that ``text`` means: ``host:port``, with or without ``tcp://``.

    Args:
        name: the configuration key, for errors.
        text: the address.
        any_host: replaces ``*`` and the other hosts that mean every interface; None refuses them.
        port_zero: whether port 0 (the system chooses) is allowed.

    Raises ConfigError naming the key.
    """
    match = _ADDRESS.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{name}: {text!r} is not an address", hint="write it like 127.0.0.1:9001")
    if match["scheme"] is not None and match["scheme"].lower() != "tcp":
        raise ConfigError(
            f"{name}: {text!r} is not a TCP address", hint="write it like 127.0.0.1:9001 or tcp://127.0.0.1:9001"
        )
    port = int(match["port"])
    if not (0 if port_zero else 1) <= port <= 65535:
        raise ConfigError(f"{name}: {port} is not a port", hint="use a number from 1 to 65535")
    return Address(host_of(name, match["host"].strip("[]"), any_host=any_host), port)


def host_of(name: str, host: str, *, any_host: str | None = None) -> str:
    """A host name or IP address that can be connected to. Raises ConfigError naming the key."""
    host = host.strip()
    if host in _ANY:
        if any_host is None:
            raise ConfigError(
                f"{name}: {host!r} means every interface and cannot be connected to",
                hint="name the host, e.g. 127.0.0.1",
            )
        return any_host
    if host.lower() == "localhost":
        return "127.0.0.1"
    if _HOST.fullmatch(host) is None:
        raise ConfigError(f"{name}: {host!r} is not a host", hint="use a host name or an IP address")
    return host


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine's loopback interface."""
    return host == "::1" or host.startswith("127.")


def route_to(address: Address) -> str:
    """The IP address of this machine on the way to ``address``; nothing is sent. 127.0.0.1 when there is no way."""
    try:
        family, kind, proto, _, target = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except (OSError, UnicodeError):
        return "127.0.0.1"
