"""Faults that a run asks an instance for: what its links, its tiers and its way to the controller are for a while.

They exist only in an instance whose starter gave it a token in its environment, as the runner does for a scenario with
faults. Whoever holds the token replaces all of them with one request; see docs/reference/faults.md.
"""

from __future__ import annotations

import os
from typing import Annotated

import msgspec
from msgspec import Meta

from lmcache_kit.errors import ConfigError, InvalidRequestError

__all__ = ["FAULTS_VARIABLE", "TOKEN_VARIABLE", "InstanceFaults", "LinkFault", "decode_faults", "from_environment"]

TOKEN_VARIABLE = "LMCACHE_KIT_FAULT_TOKEN"  # noqa: S105  (a name, not a token)
FAULTS_VARIABLE = "LMCACHE_KIT_FAULTS"
_SHORTEST_TOKEN = 16


class LinkFault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A link to a peer: bytes per second and seconds where they differ from the configuration, or nothing at all."""

    bandwidth: Annotated[float, Meta(gt=0)] | None = None
    latency: Annotated[float, Meta(ge=0)] | None = None
    cut: bool = False


class InstanceFaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All faults that are in force at an instance.

    Args:
        links: by peer URL.
        controller_cut: whether the instance and the controller are parted.
        full_tiers: locations that take nothing new.
    """

    links: dict[str, LinkFault] = {}
    controller_cut: bool = False
    full_tiers: list[str] = []


def decode_faults(body: bytes | str) -> InstanceFaults:
    """Raises InvalidRequestError for anything but the JSON of :class:`InstanceFaults`."""
    try:
        return msgspec.json.decode(body, type=InstanceFaults)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"these are no faults: {error}") from None


def from_environment() -> tuple[str, InstanceFaults] | None:
    """The token and the faults to begin with; None when this instance takes no faults. Raises ConfigError.

    Both variables are removed, so that nothing which the instance starts inherits them.
    """
    token = os.environ.pop(TOKEN_VARIABLE, None)
    faults = os.environ.pop(FAULTS_VARIABLE, None)
    if token is None:
        return None
    if len(token) < _SHORTEST_TOKEN:
        raise ConfigError(f"{TOKEN_VARIABLE} has fewer than {_SHORTEST_TOKEN} characters")
    try:
        return token, InstanceFaults() if faults is None else decode_faults(faults)
    except InvalidRequestError as error:
        raise ConfigError(f"{FAULTS_VARIABLE}: {error.message}") from None
