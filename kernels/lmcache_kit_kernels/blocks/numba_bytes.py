"""What the payload around the blocks costs, compiled: its checks and its fields of a few bits.

The functions are those of :mod:`lmcache_kit_kernels.checks` and :mod:`lmcache_kit_kernels.packing` with backend
``numba``. They hold no GIL.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lmcache_kit_kernels.blocks.numba_compile import compiled, sealed
from lmcache_kit_kernels.packing import packed_size

__all__ = ["pack_rows", "unpack_rows", "word_sums"]

Array = np.ndarray[Any, np.dtype[Any]]


def word_sums(words: Array) -> tuple[int, int]:
    """See :func:`lmcache_kit_kernels.checks.word_sums`."""
    weighted, plain = _word_sums(sealed(words, np.uint16))
    return int(weighted), int(plain)


@compiled
def _word_sums(words: Array) -> tuple[int, int]:
    weighted, plain = np.uint32(0), np.uint32(0)
    for index in range(words.size):
        word = np.uint32(words[index])
        plain = np.uint32(plain + word)
        weighted = np.uint32(weighted + np.uint32(word * np.uint32(np.uint32(index) * np.uint32(2) + np.uint32(1))))
    return int(weighted), int(plain)


def pack_rows(values: Array, width: int) -> Array:
    """See :func:`lmcache_kit_kernels.packing.pack_rows`."""
    rows, count = values.shape
    packed = np.empty((rows, packed_size(count, width)), np.uint8)
    _pack(sealed(values, np.uint8), width, packed)
    return packed


@compiled
def _pack(values: Array, width: int, packed: Array) -> None:
    rows, count = values.shape
    for row in range(rows):
        line, out = values[row], packed[row]
        whole = count // 8 * 8
        # Loops of constant stride have vector instructions.
        if width == 4:
            for byte in range(whole // 2):
                out[byte] = line[2 * byte] | np.uint8(line[2 * byte + 1] << np.uint8(4))
        elif width == 2:
            for byte in range(whole // 4):
                low = line[4 * byte] | np.uint8(line[4 * byte + 1] << np.uint8(2))
                high = line[4 * byte + 2] | np.uint8(line[4 * byte + 3] << np.uint8(2))
                out[byte] = low | np.uint8(high << np.uint8(4))
        else:
            for octet in range(whole // 8):  # eight fields fill `width` bytes
                wide = np.uint64(0)
                for place in range(8):
                    wide |= np.uint64(line[8 * octet + place]) << np.uint64(place * width)
                for byte in range(width):
                    out[octet * width + byte] = np.uint8(wide >> np.uint64(8 * byte))
        done = whole // 8 * width
        wide = np.uint64(0)
        for place in range(count - whole):
            wide |= np.uint64(line[whole + place]) << np.uint64(place * width)
        for byte in range(out.size - done):
            out[done + byte] = np.uint8(wide >> np.uint64(8 * byte))


def unpack_rows(packed: Array, count: int, width: int) -> Array:
    """See :func:`lmcache_kit_kernels.packing.unpack_rows`, which has checked the size and the unused bits."""
    values = np.empty((packed.shape[0], count), np.uint8)
    _unpack(sealed(packed, np.uint8), width, values)
    return values


@compiled
def _unpack(packed: Array, width: int, values: Array) -> None:
    rows, count = values.shape
    for row in range(rows):
        line, source = values[row], packed[row]
        whole = count // 8 * 8
        if width == 4:
            for byte in range(whole // 2):
                line[2 * byte] = source[byte] & np.uint8(15)
                line[2 * byte + 1] = source[byte] >> np.uint8(4)
        elif width == 2:
            for byte in range(whole // 4):
                line[4 * byte] = source[byte] & np.uint8(3)
                line[4 * byte + 1] = np.uint8(source[byte] >> np.uint8(2)) & np.uint8(3)
                line[4 * byte + 2] = np.uint8(source[byte] >> np.uint8(4)) & np.uint8(3)
                line[4 * byte + 3] = source[byte] >> np.uint8(6)
        else:
            mask = np.uint64((1 << width) - 1)
            for octet in range(whole // 8):
                wide = np.uint64(0)
                for byte in range(width):
                    wide |= np.uint64(source[octet * width + byte]) << np.uint64(8 * byte)
                for place in range(8):
                    line[8 * octet + place] = np.uint8((wide >> np.uint64(place * width)) & mask)
        done = whole // 8 * width
        wide = np.uint64(0)
        for byte in range(source.size - done):
            wide |= np.uint64(source[done + byte]) << np.uint64(8 * byte)
        for place in range(count - whole):
            line[whole + place] = np.uint8((wide >> np.uint64(place * width)) & np.uint64((1 << width) - 1))
