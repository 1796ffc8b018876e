"""Rows of small integers in a fixed number of bits each, least significant bit first.

All rows at once, for the rows are those of all blocks: a call per block would cost more than the packing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lmcache_kit.errors import BlobError

__all__ = ["pack_rows", "packed_bytes", "unpack_rows"]

Array = np.ndarray[Any, np.dtype[Any]]


def packed_bytes(count: int, width: int) -> int:
    """Bytes that ``count`` integers of ``width`` bits take, without padding to anything larger."""
    return (count * width + 7) // 8


def pack_rows(values: Array, width: int) -> Array:
    """uint8 ``[n, packed_bytes(count, width)]`` of ``values`` uint8 ``[n, count]``, each below ``2**width``.

    1 <= width <= 8. Unused bits of a row's last byte are zero.
    """
    rows, count = values.shape
    if width == 8:
        return values
    if width == 1:
        return np.packbits(values, axis=1, bitorder="little")
    # Eight integers of w bits are w bytes, and 8 / w integers are one byte where w divides 8.
    per = 8 if 8 % width else 8 // width
    if count % per:
        values = np.pad(values, [(0, 0), (0, -count % per)])
    grouped = values.reshape(rows, -1, per)
    if per < 8:
        packed = grouped[:, :, 0].copy()
        for place in range(1, per):
            packed |= grouped[:, :, place] << np.uint8(place * width)
        return packed[:, : packed_bytes(count, width)]
    wide = np.zeros(grouped.shape[:2], dtype="<u8")
    for place in range(per):
        wide |= grouped[:, :, place].astype("<u8") << np.uint64(place * width)
    packed = wide.view(np.uint8).reshape(rows, -1, 8)[:, :, :width].reshape(rows, -1)
    return packed[:, : packed_bytes(count, width)]


def unpack_rows(packed: Array, count: int, width: int) -> Array:
    """Undo :func:`pack_rows`. Raises BlobError where unused bits are not zero: a list of integers has one spelling."""
    rows = packed.shape[0]
    used = count * width % 8
    if used and packed.shape[1] and bool((packed[:, -1] >> np.uint8(used)).any()):
        raise BlobError("cachegen block: bits after packed integers are not zero")
    if width == 8:
        return packed
    if width == 1:
        return np.unpackbits(packed, axis=1, count=count, bitorder="little")
    per = 8 if 8 % width else 8 // width
    if per < 8:
        values = np.empty((rows, packed.shape[1], per), dtype=np.uint8)
        mask = np.uint8((1 << width) - 1)
        for place in range(per):
            np.right_shift(packed, np.uint8(place * width), out=values[:, :, place])
        values &= mask
        return values.reshape(rows, -1)[:, :count]
    missing = -packed.shape[1] % width
    if missing:
        packed = np.pad(packed, [(0, 0), (0, missing)])
    wide = np.zeros((rows, packed.shape[1] // width, 8), dtype=np.uint8)
    wide[:, :, :width] = packed.reshape(rows, -1, width)
    numbers = wide.view("<u8")[:, :, 0]
    values = np.empty((*numbers.shape, 8), dtype=np.uint8)
    for place in range(8):
        values[:, :, place] = (numbers >> np.uint64(place * width)) & np.uint64((1 << width) - 1)
    return values.reshape(rows, -1)[:, :count]
