"""Small integers side by side in a fixed number of bits, least significant bit first."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmcache_kit_kernels.errors import CorruptStreamError

__all__ = ["pack_bits", "packed_size", "unpack_bits"]

Array = np.ndarray[Any, np.dtype[Any]]


def packed_size(count: int, width: int) -> int:
    """Bytes that ``count`` integers of ``width`` bits take."""
    return (count * width + 7) // 8


def pack_bits(values: Array, width: int) -> Array:
    """``values`` (uint8, below ``2**width``, 1 <= width <= 8) in ``packed_size`` bytes, the last padded with zeros."""
    bits = np.unpackbits(values.reshape(-1, 1), axis=1, count=width, bitorder="little")
    return np.packbits(bits, bitorder="little")


def unpack_bits(packed: Array, count: int, width: int, *, limit: int) -> Array:
    """``count`` integers out of ``packed`` (uint8). Raises CorruptStreamError unless each is below ``limit``, the size
    is right and the padding is zero, so one list of integers has one spelling."""
    if packed.size != packed_size(count, width):
        raise CorruptStreamError(f"{packed.size} bytes do not hold {count} integers of {width} bits")
    bits = np.unpackbits(packed, bitorder="little")
    if bits[count * width :].any():
        raise CorruptStreamError("padding after packed integers is not zero")
    values = np.packbits(bits[: count * width].reshape(count, width), axis=1, bitorder="little").reshape(count)
    if count and int(values.max()) >= limit:
        raise CorruptStreamError(f"a packed integer is {int(values.max())}, it must be below {limit}")
    return values
