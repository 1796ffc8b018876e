"""Rows of small integers in a fixed number of bits each, least significant bit first.

All rows at once, for the rows are those of many blocks: a call for each would cost more than the packing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lmcache_kit_kernels.errors import CorruptStreamError

__all__ = ["pack_rows", "packed_size", "unpack_rows"]

Array = np.ndarray[Any, np.dtype[Any]]


def packed_size(count: int, width: int) -> int:
    """Bytes that ``count`` integers of ``width`` bits take, without padding to anything larger."""
    return (count * width + 7) // 8


def pack_rows(values: Array, width: int, *, backend: str = "numpy") -> Array:
    """uint8 ``[n, packed_size(count, width)]`` of ``values`` uint8 ``[n, count]``, each below ``2**width``.

    1 <= width <= 8. Unused bits of a row's last byte are zero. With backend ``numba`` compiled loops pack, without the
    GIL; any other is numpy.
    """
    if backend == "numba":
        from lmcache_kit_kernels.blocks import numba_bytes

        return numba_bytes.pack_rows(values, width)
    rows, count = values.shape
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
        return packed
    wide = np.zeros(grouped.shape[:2], dtype="<u8")
    for place in range(per):
        wide |= grouped[:, :, place].astype("<u8") << np.uint64(place * width)
    packed = wide.view(np.uint8).reshape(rows, -1, 8)[:, :, :width].reshape(rows, -1)
    return packed[:, : packed_size(count, width)]


def unpack_rows(packed: Array, count: int, width: int, *, backend: str = "numpy") -> Array:
    """Undo :func:`pack_rows`: uint8 ``[n, count]`` of uint8 ``[n, packed_size(count, width)]``.

    Raises CorruptStreamError where the size is another or unused bits are not zero: a list of integers has one
    spelling.
    """
    rows = packed.shape[0]
    if packed.shape[1] != packed_size(count, width):
        raise CorruptStreamError(f"{packed.shape[1]} bytes do not hold {count} integers of {width} bits")
    used = count * width % 8
    if used and bool((packed[:, -1] >> np.uint8(used)).any()):
        raise CorruptStreamError("bits after packed integers are not zero")
    if backend == "numba":
        from lmcache_kit_kernels.blocks import numba_bytes

        return numba_bytes.unpack_rows(packed, count, width)
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
