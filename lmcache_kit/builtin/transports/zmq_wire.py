"""Messages of the ZeroMQ transport: one header frame, then the frames of the request or the answer.

Header, little-endian, 16 bytes: magic ``LKT1``, kind (u8: 1 request, 2 answer, 3 refusal), 3 zero bytes, request
number (u64, chosen by the requester, repeated in the answer). A refusal carries one msgpack frame
``[message, hint or nil]``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.errors import InvalidRequestError

__all__ = [
    "ANSWER",
    "REFUSAL",
    "REQUEST",
    "as_buffers",
    "pack_header",
    "pack_refusal",
    "unpack_header",
    "unpack_refusal",
]

REQUEST, ANSWER, REFUSAL = 1, 2, 3
_HEADER = struct.Struct("<4sB3sQ")
_MAGIC = b"LKT1"
_COPIED = 1024  # below this a copy is cheaper than a view that keeps the received message alive
_refusal = msgspec.msgpack.Decoder(tuple[str, str | None])


def pack_header(kind: int, number: int) -> bytes:
    """The header frame."""
    return _HEADER.pack(_MAGIC, kind, b"\0\0\0", number)


def unpack_header(frame: Buffer) -> tuple[int, int]:
    """Kind and request number. Raises InvalidRequestError for anything but a header."""
    if len(frame) != _HEADER.size:
        raise InvalidRequestError(f"a header frame has {_HEADER.size} bytes, not {len(frame)}")
    magic, kind, zeros, number = _HEADER.unpack(frame)
    if magic != _MAGIC or zeros != b"\0\0\0" or kind not in (REQUEST, ANSWER, REFUSAL):
        raise InvalidRequestError("not a header frame of this transport")
    return kind, number


def pack_refusal(message: str, hint: str | None) -> bytes:
    """The frame that says why a request was refused; long texts are cut."""
    text = message.encode(errors="replace")[:4096].decode(errors="ignore")
    cure = None if hint is None else hint.encode(errors="replace")[:4096].decode(errors="ignore")
    return msgspec.msgpack.encode((text, cure))


def unpack_refusal(frames: Sequence[Buffer]) -> tuple[str, str | None]:
    """Message and hint of a refusal, whatever the peer sent."""
    try:
        return _refusal.decode(frames[0])
    except (msgspec.DecodeError, IndexError, UnicodeDecodeError):
        return "no readable reason", None


def as_buffers(parts: Sequence[Any]) -> list[Buffer]:
    """Received ``zmq.Frame`` objects as bytes (small) or views that keep their message alive (large)."""
    return [part.bytes if len(part) < _COPIED else memoryview(part.buffer).toreadonly() for part in parts]
