"""Peer URLs: what names an instance to other instances."""

from __future__ import annotations

import re
import socket

from lmcache_kit.errors import InvalidRequestError

__all__ = ["normal_peer_url", "peer_scheme", "same_peer"]

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(\S+)")
_HOST_PORT = re.compile(r"(\*|\[[^\]\s]+\]|[^:/\s]+):([0-9]{1,5})")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]", "ip6-localhost", "localhost.localdomain"})
_ANY = frozenset({"*", "0.0.0.0", "[::]"})


def normal_peer_url(url: str) -> str:
    """``url`` with its scheme; ``host:port`` alone means TCP, as in LMCache's ``peer_init_url``.

    Raises InvalidRequestError when it is neither.
    """
    text = url.strip()
    if "://" not in text:
        if _HOST_PORT.fullmatch(text) is None:
            raise InvalidRequestError(f"{url!r} is not a peer URL", hint="write it like localhost:8200")
        text = f"tcp://{text}"
    match = _URL.fullmatch(text)
    if match is None or (match[1] == "tcp" and _HOST_PORT.fullmatch(match[2]) is None):
        raise InvalidRequestError(f"{url!r} is not a peer URL", hint="write it like tcp://localhost:8200")
    return text


def peer_scheme(url: str) -> str:
    """The scheme of a normal peer URL."""
    return url.partition("://")[0]


def _place(url: str) -> tuple[str, str, str]:
    scheme, _, rest = normal_peer_url(url).partition("://")
    match = _HOST_PORT.fullmatch(rest)
    if scheme != "tcp" or match is None:
        return scheme, rest, ""
    host = match[1].lower()
    if host in _LOOPBACK or host == socket.gethostname().lower():
        host = "localhost"
    return scheme, host, str(int(match[2]))


def same_peer(first: str, second: str) -> bool:
    """Whether two peer URLs name one instance, as far as their spelling tells.

    ``localhost``, ``127.0.0.1``, ``[::1]`` and this host's name are one host; a URL whose host means any interface
    equals every local one with its port. Host names are not resolved.
    """
    one, other = _place(first), _place(second)
    if one == other:
        return True
    hosts = {one[1], other[1]}
    local = hosts <= _ANY | {"localhost"}
    return one[0] == other[0] == "tcp" and one[2] == other[2] and local
