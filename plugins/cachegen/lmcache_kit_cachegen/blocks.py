"""Bodies of blocks: sizes, writing and reading of each mode.

All integers are little-endian. A reader turns every contradiction into BlobError and never reads past the body.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from lmcache_kit_kernels.errors import CorruptStreamError
from lmcache_kit_kernels.packing import pack_bits, packed_size, unpack_bits
from lmcache_kit_kernels.quantize.arguments import MAX_LEVELS, MIN_LEVELS
from lmcache_kit_kernels.rans.api import groups_of
from lmcache_kit_kernels.tables import NUM_TABLES

from lmcache_kit.errors import BlobError
from lmcache_kit_cachegen.container import Shape

__all__ = ["CodedBlock", "check_levels", "coded_size", "packed_block_size", "read_coded", "read_packed", "write_coded"]

Array = np.ndarray[Any, np.dtype[Any]]

_TABLE_BITS = 5
_COUNT, _STATE, _WORD = np.dtype("<u4"), np.dtype("<u4"), np.dtype("<u2")


def symbol_bits(levels: int) -> int:
    """Bits of a symbol or centre written plainly."""
    return levels.bit_length()


def check_levels(levels: int) -> int:
    """``levels`` of a directory entry. Raises BlobError unless the quantizer can have used it."""
    if not MIN_LEVELS <= levels <= MAX_LEVELS or levels % 2 == 0:
        raise BlobError(f"cachegen block has {levels} quantization levels")
    return levels


def packed_block_size(shape: Shape, levels: int) -> int:
    """Bytes of a block whose symbols are written in a fixed number of bits."""
    symbols = packed_size(shape.num_tokens * shape.channels, symbol_bits(levels))
    return shape.num_tokens * shape.layout.np_dtype.itemsize + symbols


def coded_size(shape: Shape, levels: int, words: int) -> int:
    """Bytes of an entropy-coded block with ``words`` words."""
    return (
        shape.num_tokens * shape.layout.np_dtype.itemsize
        + packed_size(shape.channels, symbol_bits(levels))
        + packed_size(shape.channels, _TABLE_BITS)
        + groups_of(shape.lanes, shape.group) * _COUNT.itemsize
        + shape.lanes * _STATE.itemsize
        + words * _WORD.itemsize
    )


@dataclass(frozen=True, slots=True, eq=False)
class CodedBlock:
    """The arrays of one entropy-coded block: ``[T]``, ``[C]``, ``[C]``, ``[G]``, ``[N]`` and the words."""

    maxima: Array
    centres: Array
    tables: Array
    counts: Array
    states: Array
    words: Array


def write_packed(maxima: Array, symbols: Array, levels: int) -> list[bytes]:
    """Body of a packed block."""
    return [_little(maxima), pack_bits(symbols, symbol_bits(levels)).tobytes()]


def write_coded(block: CodedBlock, levels: int) -> list[bytes]:
    """Body of an entropy-coded block."""
    return [
        _little(block.maxima),
        pack_bits(block.centres, symbol_bits(levels)).tobytes(),
        pack_bits(block.tables, _TABLE_BITS).tobytes(),
        block.counts.astype(_COUNT).tobytes(),
        block.states.astype(_STATE).tobytes(),
        block.words.astype(_WORD).tobytes(),
    ]


def _little(array: Array) -> bytes:
    # bfloat16 of ml_dtypes has no byte order of its own: its bits do.
    return array.view(f"u{array.itemsize}").astype(f"<u{array.itemsize}").tobytes()


class _Cursor:
    """Takes arrays off the front of a body."""

    def __init__(self, body: memoryview) -> None:
        self._bytes = np.frombuffer(body, dtype=np.uint8)

    def take(self, count: int, dtype: np.dtype[Any]) -> Array:
        size = count * dtype.itemsize
        if size > self._bytes.size:
            raise BlobError("cachegen block ends early")
        head, self._bytes = self._bytes[:size], self._bytes[size:]
        return head.view(dtype)

    def rest(self) -> Array:
        return self._bytes


def _maxima(cursor: _Cursor, shape: Shape) -> Array:
    dtype = shape.layout.np_dtype
    bits = cursor.take(shape.num_tokens, np.dtype(f"<u{dtype.itemsize}"))
    return bits.astype(f"=u{dtype.itemsize}").view(dtype)


def read_verbatim(body: memoryview, shape: Shape) -> Array:
    """Values ``[T, C]`` of a verbatim block."""
    dtype = shape.layout.np_dtype
    cursor = _Cursor(body)
    bits = cursor.take(shape.num_tokens * shape.channels, np.dtype(f"<u{dtype.itemsize}"))
    if cursor.rest().size:
        raise BlobError("cachegen block is longer than its values")
    return bits.astype(f"=u{dtype.itemsize}").view(dtype).reshape(shape.num_tokens, shape.channels)


def read_packed(body: memoryview, shape: Shape, levels: int) -> tuple[Array, Array]:
    """Maxima ``[T]`` and symbols ``[T, C]`` of a packed block."""
    cursor = _Cursor(body)
    maxima = _maxima(cursor, shape)
    try:
        symbols = unpack_bits(
            cursor.rest(), shape.num_tokens * shape.channels, symbol_bits(levels), limit=check_levels(levels)
        )
    except CorruptStreamError as error:
        raise BlobError(f"cachegen block: {error}") from None
    return maxima, symbols.reshape(shape.num_tokens, shape.channels)


def read_coded(body: memoryview, shape: Shape, levels: int) -> CodedBlock:
    """The arrays of an entropy-coded block, still coded."""
    check_levels(levels)
    cursor = _Cursor(body)
    maxima = _maxima(cursor, shape)
    byte = np.dtype(np.uint8)
    centres = cursor.take(packed_size(shape.channels, symbol_bits(levels)), byte)
    tables = cursor.take(packed_size(shape.channels, _TABLE_BITS), byte)
    counts = cursor.take(groups_of(shape.lanes, shape.group), _COUNT)
    states = cursor.take(shape.lanes, _STATE)
    words = cursor.rest()
    if words.size != int(counts.sum(dtype=np.uint64)) * _WORD.itemsize:
        raise BlobError("cachegen block holds another number of words than it announces")
    try:
        return CodedBlock(
            maxima,
            unpack_bits(centres, shape.channels, symbol_bits(levels), limit=levels),
            unpack_bits(tables, shape.channels, _TABLE_BITS, limit=NUM_TABLES),
            counts,
            states,
            words.view(_WORD),
        )
    except CorruptStreamError as error:
        raise BlobError(f"cachegen block: {error}") from None
