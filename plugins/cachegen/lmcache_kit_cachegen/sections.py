"""The sections of a block's two parts: which there are, how large, and arrays to and from their bytes.

Blocks of the same mode and levels have sections of the same sizes, so a whole set of them is one array of bytes
``[n, size]``, and every section is a slice of its columns.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from lmcache_kit.errors import BlobError
from lmcache_kit_cachegen.bits import pack_rows, packed_bytes, unpack_rows
from lmcache_kit_cachegen.header import Header, Mode, padded

__all__ = [
    "coded_limit",
    "data_size",
    "fixed_rows",
    "fixed_size",
    "pad_columns",
    "read_fixed",
    "sections_of",
    "symbol_bits",
]

Array = np.ndarray[Any, np.dtype[Any]]

TABLE_BITS = 5
MAX_EXPONENT = 16
_COUNT = _STATE = np.dtype("<u4")


def symbol_bits(levels: int) -> int:
    """Bits of a symbol or centre written plainly."""
    return levels.bit_length()


@functools.lru_cache(maxsize=256)
def sections_of(header: Header, mode: Mode, levels: int) -> tuple[tuple[str, int], ...]:
    """Names and bytes, without padding, of the sections of a fixed part, in their order."""
    if mode in (Mode.VERBATIM, Mode.ZERO):
        return ()
    lmcache, channels = header.quantizer == "lmcache", header.channels
    width = header.layout.np_dtype.itemsize if lmcache else header.exponent_bytes
    sections = [("scales", header.num_tokens * width)]
    if not lmcache:
        sections.append(("centres", channels * header.offset_bytes))
    elif mode is Mode.CODED:
        sections.append(("centres", packed_bytes(channels, symbol_bits(levels))))
    if mode is Mode.CODED:
        sections.append(("tables", packed_bytes(channels, TABLE_BITS)))
        if header.anchor_group:
            sections.append(("flags", packed_bytes(channels, 1)))
        sections += [("counts", header.groups * _COUNT.itemsize), ("states", header.lanes * _STATE.itemsize)]
    if header.refined_tokens:
        sections.append(("refinements", packed_bytes(header.refined_tokens * channels, header.refine_bits)))
    return tuple(sections)


@functools.lru_cache(maxsize=256)
def fixed_size(header: Header, mode: Mode, levels: int) -> int:
    """Bytes of a block's fixed part."""
    return sum(padded(size) for _, size in sections_of(header, mode, levels))


def data_size(header: Header, mode: Mode, levels: int) -> int:
    """Bytes of the data part of a block that is not coded."""
    if mode is Mode.ZERO:
        return 0
    elements = header.num_tokens * header.channels
    if mode is Mode.VERBATIM:
        return padded(elements * header.layout.np_dtype.itemsize)
    return padded(packed_bytes(elements, symbol_bits(levels)))


def coded_limit(header: Header) -> int:
    """Most bytes of the data part of a coded block: a step takes at most one word per lane."""
    return padded(2 * header.num_tokens * header.channels)


def pad_columns(rows: Array) -> Array:
    """``rows`` uint8 ``[n, size]`` with zero columns up to a multiple of 4."""
    missing = -rows.shape[1] % 4
    return np.pad(rows, [(0, 0), (0, missing)]) if missing else rows


def fixed_rows(header: Header, mode: Mode, levels: int, arrays: dict[str, Array]) -> Array:
    """Fixed parts uint8 ``[n, fixed_size]`` of blocks of one mode and levels from the arrays of their sections."""
    count = len(arrays["scales"])
    rows = np.zeros((count, fixed_size(header, mode, levels)), dtype=np.uint8)
    start = 0
    for name, size in sections_of(header, mode, levels):
        if size:
            rows[:, start : start + size] = _to_bytes(header, name, arrays[name], levels)
        start += padded(size)
    return rows


def _to_bytes(header: Header, name: str, array: Array, levels: int) -> Array:
    lmcache = header.quantizer == "lmcache"
    if name == "scales":
        return little(array if lmcache else array.astype(np.uint8, copy=False))
    if name == "centres":
        return pack_rows(array, symbol_bits(levels)) if lmcache else little(array.astype(f"<i{header.offset_bytes}"))
    if name == "tables":
        return pack_rows(array, TABLE_BITS)
    if name == "flags":
        return pack_rows(array.view(np.uint8), 1)
    if name == "refinements":
        return pack_rows(array.reshape(len(array), -1), header.refine_bits)
    return little(array.astype(_COUNT, copy=False))


def little(array: Array) -> Array:
    """The bytes of ``array`` ``[n, ...]`` in little-endian order, uint8 ``[n, size]``."""
    # bfloat16 of ml_dtypes has no byte order of its own: its bits do.
    bits = array.view(f"u{array.itemsize}").astype(f"<u{array.itemsize}", copy=False)
    return np.ascontiguousarray(bits).reshape(len(array), -1).view(np.uint8)


def from_little(rows: Array, dtype: np.dtype[Any]) -> Array:
    """Undo :func:`little` for a dtype: ``[n, size / itemsize]``, aligned."""
    unsigned = f"u{dtype.itemsize}"
    return np.ascontiguousarray(rows).view(f"<{unsigned}").astype(unsigned, copy=False).view(dtype)


def read_fixed(header: Header, mode: Mode, levels: int, rows: Array) -> dict[str, Array]:
    """The arrays of the sections of fixed parts uint8 ``[n, fixed_size]``.

    Scales are maxima in the KV's dtype or exponents uint8, centres uint8 or offsets int16, flags bool, counts and
    states uint32, refinements ``[n, R, C]``. Raises BlobError for values that no encoder writes.
    """
    arrays: dict[str, Array] = {}
    start = 0
    for name, size in sections_of(header, mode, levels):
        end = start + padded(size)
        if bool(rows[:, start + size : end].any()):
            raise BlobError("cachegen block: padding is not zero")
        arrays[name] = _from_bytes(header, name, rows[:, start : start + size], levels)
        start = end
    return arrays


def _from_bytes(header: Header, name: str, rows: Array, levels: int) -> Array:
    lmcache, channels = header.quantizer == "lmcache", header.channels
    if name == "scales":
        return _maxima(header, rows) if lmcache else _exponents(header, rows)
    if name == "centres":
        return _centres(rows, channels, levels) if lmcache else _offsets(header, rows)
    if name == "tables":
        return unpack_rows(rows, channels, TABLE_BITS)
    if name == "flags":
        return unpack_rows(rows, channels, 1).view(bool)
    if name == "refinements":
        values = unpack_rows(rows, header.refined_tokens * channels, header.refine_bits)
        return values.reshape(len(rows), header.refined_tokens, channels)
    return from_little(rows, np.dtype(np.uint32))


def _maxima(header: Header, rows: Array) -> Array:
    from lmcache_kit_kernels.quantize.arguments import in_domain

    maxima = from_little(rows, header.layout.np_dtype)
    with np.errstate(invalid="ignore"):
        if not bool(in_domain(maxima).all()):
            raise BlobError("cachegen block: a token's maximum is one that the quantizer never makes")
    return maxima


def _exponents(header: Header, rows: Array) -> Array:
    if not header.exponent_bytes:
        return np.zeros((len(rows), header.num_tokens), dtype=np.uint8)
    if int(rows.max(initial=0)) > MAX_EXPONENT:
        raise BlobError(f"cachegen block: a token's exponent is above {MAX_EXPONENT}")
    return np.ascontiguousarray(rows)


def _centres(rows: Array, channels: int, levels: int) -> Array:
    centres = unpack_rows(rows, channels, symbol_bits(levels))
    if int(centres.max(initial=0)) >= levels:
        raise BlobError(f"cachegen block: a centre is {int(centres.max())}, it must be below {levels}")
    return centres


def _offsets(header: Header, rows: Array) -> Array:
    if header.offset_bytes == 1:
        return np.ascontiguousarray(rows).view(np.int8).astype(np.int16)
    offsets = from_little(rows, np.dtype(np.int16))
    if bool((offsets == np.iinfo(np.int16).min).any()):
        raise BlobError("cachegen block: an offset is one that the quantizer never makes")
    return offsets
