"""The bytes that Python's pickle makes of a chunk's tokens, for the hash algorithm sha256 of vLLM and LMCache.

Only the few opcodes (protocol 5) that tuples of integers and a short text need. Nothing here can be read back, and the
module pickle, whose loading runs code, stays out of this project.
"""

from __future__ import annotations

import struct

__all__ = ["pickle_bytes"]

_FRAME_BYTES = 64 * 1024
"""A frame that has grown to this size ends before the next object."""


def pickle_bytes(value: object) -> bytes:
    """As ``pickle.dumps(value, protocol=5)`` for integers below 255 bytes, texts below 256 bytes and tuples of them.

    Raises TypeError for anything else.
    """
    frames: list[bytearray] = [bytearray()]
    _save(value, frames)
    frames[-1] += b"."
    parts = [b"\x80\x05"]
    for frame in frames:
        if len(frame) >= 4:  # a frame's own header would be longer than what is in it
            parts.append(struct.pack("<cQ", b"\x95", len(frame)))
        parts.append(bytes(frame))
    return b"".join(parts)


def _save(value: object, frames: list[bytearray]) -> None:
    if len(frames[-1]) >= _FRAME_BYTES:
        frames.append(bytearray())
    if isinstance(value, int):
        frames[-1] += _integer(value)
    elif isinstance(value, str) and len(text := value.encode()) < 256:
        frames[-1] += b"\x8c" + bytes([len(text)]) + text + b"\x94"
    elif isinstance(value, tuple):
        if len(value) > 3:
            frames[-1] += b"("
        for each in value:
            _save(each, frames)
        end = (b")", b"\x85", b"\x86", b"\x87")[len(value)] if len(value) <= 3 else b"t"
        frames[-1] += end + (b"\x94" if value else b"")
    else:
        raise TypeError(f"{type(value).__name__} is no part of a chunk")


def _integer(value: int) -> bytes:
    if 0 <= value < 2**8:
        return struct.pack("<cB", b"K", value)
    if 0 <= value < 2**16:
        return struct.pack("<cH", b"M", value)
    if -(2**31) <= value < 2**31:
        return struct.pack("<ci", b"J", value)
    size = (value.bit_length() if value >= 0 else (value + 1).bit_length()) // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
