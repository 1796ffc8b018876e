"""What the payload around the blocks costs, compiled: its checks and its fields of a few bits.

The functions are those of :mod:`lmcache_kit_kernels.checks` and :mod:`lmcache_kit_kernels.packing`, with the same
results. They hold no GIL.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lmcache_kit_kernels.blocks.numba_compile import compiled, sealed
from lmcache_kit_kernels.errors import CorruptStreamError
from lmcache_kit_kernels.packing import packed_size

__all__ = ["pack_bits", "unpack_bits", "weighted_sum"]

Array = np.ndarray[Any, np.dtype[Any]]


def weighted_sum(words: Array, first: int = 0) -> int:
    """See :func:`lmcache_kit_kernels.checks.weighted_sum`; ``words`` uint16 ``[n]``, or uint8 ``[2 * n]``."""
    if words.dtype == np.uint8:
        words = words.view(np.uint16)
    return int(_weighted_sum(sealed(words, np.uint16), first % (1 << 32)))


@compiled
def _weighted_sum(words: Array, first: int) -> int:
    total, plain = np.uint32(0), np.uint32(0)
    for index in range(words.size):
        word = np.uint32(words[index])
        plain = np.uint32(plain + word)
        total = np.uint32(total + np.uint32(word * np.uint32(np.uint32(index) * np.uint32(2) + np.uint32(1))))
    return int(np.uint32(total + np.uint32(plain * np.uint32(2 * first))))


def pack_bits(values: Array, width: int) -> Array:
    """See :func:`lmcache_kit_kernels.packing.pack_bits`."""
    packed = np.empty(packed_size(values.size, width), np.uint8)
    _pack(sealed(values.reshape(-1), np.uint8), width, packed)
    return packed


@compiled
def _pack(values: Array, width: int, packed: Array) -> None:
    mask = np.uint64((1 << width) - 1)
    whole = values.size // 8
    for octet in range(whole):  # eight fields fill `width` bytes
        bits = np.uint64(0)
        for place in range(8):
            bits |= (np.uint64(values[8 * octet + place]) & mask) << np.uint64(place * width)
        for byte in range(width):
            packed[octet * width + byte] = np.uint8(bits >> np.uint64(8 * byte))
    bits = np.uint64(0)
    for place in range(values.size - 8 * whole):
        bits |= (np.uint64(values[8 * whole + place]) & mask) << np.uint64(place * width)
    for byte in range(packed.size - whole * width):
        packed[whole * width + byte] = np.uint8(bits >> np.uint64(8 * byte))


def unpack_bits(packed: Array, count: int, width: int, *, limit: int) -> Array:
    """See :func:`lmcache_kit_kernels.packing.unpack_bits`."""
    if packed.size != packed_size(count, width):
        raise CorruptStreamError(f"{packed.size} bytes do not hold {count} integers of {width} bits")
    values = np.empty(count, np.uint8)
    most, padding = _unpack(sealed(packed, np.uint8), width, values)
    if padding:
        raise CorruptStreamError("padding after packed integers is not zero")
    if most >= limit:
        raise CorruptStreamError(f"a packed integer is {most}, it must be below {limit}")
    return values


@compiled
def _unpack(packed: Array, width: int, values: Array) -> tuple[int, int]:
    """Fill ``values``; returns the largest (-1 if there is none) and the bits after the last."""
    mask = np.uint64((1 << width) - 1)
    whole = values.size // 8
    for octet in range(whole):
        bits = np.uint64(0)
        for byte in range(width):
            bits |= np.uint64(packed[octet * width + byte]) << np.uint64(8 * byte)
        for place in range(8):
            values[8 * octet + place] = np.uint8((bits >> np.uint64(place * width)) & mask)
    bits = np.uint64(0)
    for byte in range(packed.size - whole * width):
        bits |= np.uint64(packed[whole * width + byte]) << np.uint64(8 * byte)
    for place in range(values.size - 8 * whole):
        values[8 * whole + place] = np.uint8(bits & mask)
        bits >>= np.uint64(width)
    most = np.int64(-1)
    for index in range(values.size):
        most = max(most, np.int64(values[index]))
    return int(most), int(bits)
