"""What all messages of the controller protocol share."""

from __future__ import annotations

import msgspec

__all__ = [
    "ErrorMsg",
    "Message",
]


class Message(msgspec.Struct, tag=True, kw_only=True, frozen=True):
    """Base of all messages; the tag is the class name under the key ``type``."""


class ErrorMsg(Message, frozen=True):
    """The peer could not do what was asked.

    ``status`` and ``hint`` are extensions: an HTTP status and what to do next.
    """

    error: str
    status: int = 500
    hint: str | None = None
