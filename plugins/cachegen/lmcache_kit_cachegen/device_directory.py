"""Directories of payloads whose blocks are all coded, as arrays: one comparison for all blocks instead of one each.

Reading recognises what :mod:`lmcache_kit_cachegen.container` would accept; anything else is left to it, which says what
is wrong.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from lmcache_kit_cachegen.container import LARGEST_INVERSE, LEAST_INVERSE, head_size, write_directory
from lmcache_kit_cachegen.header import Header, Mode
from lmcache_kit_cachegen.sections import coded_limit, data_size, fixed_size

__all__ = ["CodedDirectory"]

Array = np.ndarray[Any, np.dtype[Any]]

_ENTRY = np.dtype(
    [("mode", "u1"), ("levels", "u1"), ("inverse", "<u2"), ("check", "<u4"), ("fixed", "<u4"), ("data", "<u4")]
)


class CodedDirectory:
    """Writes and reads the heads of payloads that share ``header`` and the ``levels`` of their blocks."""

    def __init__(self, header: Header, levels: tuple[int, ...]) -> None:
        self.header, self.levels = header, levels
        self.head_bytes = head_size(header.layout)
        self.packed_header = write_directory(header, ())[:-4]
        self._entries = np.zeros(len(levels), _ENTRY)
        self._entries["mode"] = Mode.CODED
        self._entries["levels"] = levels
        self._entries["fixed"] = [fixed_size(header, Mode.CODED, level) for level in levels]
        self.fixed_bytes = int(self._entries["fixed"].sum(dtype=np.int64))
        raw = data_size(header, Mode.VERBATIM, 0)
        packed = [fixed_size(header, Mode.PACKED, level) + data_size(header, Mode.PACKED, level) for level in levels]
        # Coded is how a block is written where that is smaller than packed, and no larger than its values are.
        self._room = np.minimum(np.array(packed) - 1, raw) - self._entries["fixed"].astype(np.int64)
        self._limit = coded_limit(header)
        self._inverses = (LEAST_INVERSE, LARGEST_INVERSE) if header.quantizer == "uniform" else (0, 0)

    def fits(self, data: Array) -> bool:
        """Whether every block with these bytes of data, ``[B]``, is to be written as coded."""
        return bool((data <= self._room).all())

    def write(self, inverses: Array, checks: Array, data: Array) -> Array:
        """Header, directory and their checksum, uint8."""
        entries = self._entries.copy()
        entries["inverse"], entries["check"], entries["data"] = inverses, checks, data
        head = self.packed_header + entries.tobytes()
        return np.frombuffer(head + zlib.crc32(head).to_bytes(4, "little"), np.uint8)

    def describes(self, payload: Array) -> bool:
        """Whether a payload uint8 begins with one of these directories, undamaged, and has the size that it says."""
        if payload.size < self.head_bytes:
            return False
        head = payload[: self.head_bytes].tobytes()
        if not head.startswith(self.packed_header) or zlib.crc32(head[:-4]) != int.from_bytes(head[-4:], "little"):
            return False
        entries = np.frombuffer(head[len(self.packed_header) : -4], _ENTRY)
        least, largest = self._inverses
        alike = all(bool((entries[name] == self._entries[name]).all()) for name in ("mode", "levels", "fixed"))
        data, inverses = entries["data"], entries["inverse"]
        right = alike and not bool((data % 4).any()) and bool((data <= self._limit).all())
        right = right and bool(((inverses >= least) & (inverses <= largest)).all())
        return right and self.head_bytes + self.fixed_bytes + int(data.sum(dtype=np.int64)) == payload.size
