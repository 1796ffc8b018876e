"""Errors that carry what to do next.

Every error that a user can meet is an :class:`LMCacheKitError`. ``status`` is the HTTP status that the servers
answer with (DESIGN 3.3), ``hint`` is one sentence that says what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BlobError",
    "CapacityError",
    "ConfigError",
    "ConflictError",
    "InvalidRequestError",
    "LMCacheKitError",
    "NotFoundError",
    "PluginError",
    "TransportError",
    "UnavailableError",
    "UnknownNameError",
    "error_from_status",
    "nearest",
]


class LMCacheKitError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: one line that names the culprit.
        hint: one line that says what to do, or None.
    """

    status: int = 500

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def detail(self) -> str:
        """The message and the hint as one readable text, as HTTP answers carry it."""
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(LMCacheKitError):
    """A configuration file, a scenario or a flag is wrong; the command line exits with 2."""

    status = 400


class InvalidRequestError(LMCacheKitError):
    """A request cannot be understood or asks for something impossible."""

    status = 400


class NotFoundError(LMCacheKitError):
    """The named object does not exist."""

    status = 404


class UnknownNameError(NotFoundError):
    """A name that is looked up in a known set is not in it.

    Args:
        what: what kind of thing the name should be, e.g. ``"compression method"``.
        name: the name that was asked for.
        known: every name that would have been accepted.
        hint: overrides the hint made from ``known``.
    """

    def __init__(self, what: str, name: str, known: Iterable[str], *, hint: str | None = None) -> None:
        self.what, self.name, self.known = what, name, sorted(known)
        if hint is None:
            near = nearest(name, self.known)
            listed = ", ".join(self.known) if self.known else "none"
            hint = f"did you mean {near!r}? known: {listed}" if near else f"known: {listed}"
        super().__init__(f"unknown {what} {name!r}", hint=hint)


class ConflictError(LMCacheKitError):
    """The request is well formed but the state of an object forbids it."""

    status = 409


class CapacityError(LMCacheKitError):
    """An object does not fit into a tier, even after evicting all that may be evicted."""

    status = 507


class UnavailableError(LMCacheKitError):
    """A worker, peer or server did not answer within its deadline."""

    status = 503
    retry_after: int = 1


class TransportError(UnavailableError):
    """A channel broke or a peer refused the exchange."""


class BlobError(LMCacheKitError):
    """A stored blob is damaged, truncated or of a version this build cannot read."""

    status = 500


class PluginError(LMCacheKitError):
    """A plugin is missing, broken, registered twice or of another API version."""


_BY_STATUS: dict[int, type[LMCacheKitError]] = {
    400: InvalidRequestError,
    404: NotFoundError,
    409: ConflictError,
    503: UnavailableError,
    507: CapacityError,
}


def error_from_status(status: int, message: str, *, hint: str | None = None) -> LMCacheKitError:
    """The error class for an HTTP-like status received from a peer; LMCacheKitError when it has none of its own."""
    return _BY_STATUS.get(status, LMCacheKitError)(message, hint=hint)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like ``name``, or None when nothing is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None
