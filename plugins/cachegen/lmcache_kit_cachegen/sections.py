"""The sections of a block's two parts: which there are, how large, and arrays to and from their bytes.

Blocks of the same mode and levels have sections of the same sizes, so a whole set of them is one array of bytes
``[n, size]``, and every section is a slice of its columns.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from lmcache_kit_kernels.errors import CorruptStreamError
from lmcache_kit_kernels.packing import pack_rows, packed_size, unpack_rows

from lmcache_kit.errors import BlobError
from lmcache_kit_cachegen.header import Header, Mode, padded

__all__ = [
    "coded_limit",
    "data_size",
    "fixed_rows",
    "fixed_size",
    "little",
    "packed_rows",
    "read_fixed",
    "refinement_rows",
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
        sections.append(("centres", packed_size(channels, symbol_bits(levels))))
    if mode is Mode.CODED:
        sections.append(("tables", packed_size(channels, TABLE_BITS)))
        if header.anchor_group:
            sections.append(("flags", packed_size(channels, 1)))
        sections += [("counts", header.groups * _COUNT.itemsize), ("states", header.lanes * _STATE.itemsize)]
    if header.refined_tokens:
        sections.append(("refinements", packed_size(header.refined_tokens * channels, header.refine_bits)))
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
    return padded(packed_size(elements, symbol_bits(levels)))


def coded_limit(header: Header) -> int:
    """Most bytes of the data part of a coded block: a step takes at most one word per lane."""
    return padded(2 * header.num_tokens * header.channels)


def fixed_rows(header: Header, mode: Mode, levels: int, arrays: dict[str, Array], backend: str = "numpy") -> Array:
    """Fixed parts uint8 ``[n, size]`` of blocks of one mode and levels from the arrays of their sections; without
    refinements, which end a fixed part and are :func:`refinement_rows`."""
    sections = [(name, size) for name, size in sections_of(header, mode, levels) if name != "refinements"]
    rows = np.zeros((len(arrays["scales"]), sum(padded(size) for _, size in sections)), dtype=np.uint8)
    start = 0
    for name, size in sections:
        if size:
            rows[:, start : start + size] = _to_bytes(header, name, arrays[name], levels, backend)
        start += padded(size)
    return rows


def _to_bytes(header: Header, name: str, array: Array, levels: int, backend: str) -> Array:
    lmcache = header.quantizer == "lmcache"
    if name == "scales":
        return little(array if lmcache else array.astype(np.uint8, copy=False))
    if name == "centres":
        if lmcache:
            return pack_rows(array, symbol_bits(levels), backend=backend)
        return little(array.astype(f"<i{header.offset_bytes}"))
    if name == "tables":
        return pack_rows(array, TABLE_BITS, backend=backend)
    if name == "flags":
        return pack_rows(array.view(np.uint8), 1, backend=backend)
    return little(array.astype(_COUNT, copy=False))


def refinement_rows(refinements: Array, bits: int, backend: str = "numpy") -> Array:
    """The section of refinements uint8 ``[n, R, C]`` of ``bits`` bits: uint8 ``[n, size]``, whatever the mode."""
    return packed_rows(refinements.reshape(len(refinements), -1), bits, backend)


def packed_rows(values: Array, width: int, backend: str = "numpy") -> Array:
    """Integers uint8 ``[n, count]`` in ``width`` bits each, as bytes uint8 ``[n, size]``, filled up to a multiple of
    4."""
    packed = pack_rows(values, width, backend=backend)
    missing = -packed.shape[1] % 4
    return np.pad(packed, [(0, 0), (0, missing)]) if missing else packed


def little(array: Array) -> Array:
    """The bytes of ``array`` ``[n, ...]`` in little-endian order, uint8 ``[n, size]``."""
    # bfloat16 of ml_dtypes has no byte order of its own: its bits do.
    bits = array.view(f"u{array.itemsize}").astype(f"<u{array.itemsize}", copy=False)
    return np.ascontiguousarray(bits).reshape(len(array), -1).view(np.uint8)


def from_little(rows: Array, dtype: np.dtype[Any]) -> Array:
    """Undo :func:`little` for a dtype: ``[n, size / itemsize]``, aligned."""
    unsigned = f"u{dtype.itemsize}"
    return np.ascontiguousarray(rows).view(f"<{unsigned}").astype(unsigned, copy=False).view(dtype)


def read_fixed(header: Header, mode: Mode, levels: int, rows: Array, backend: str = "numpy") -> dict[str, Array]:
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
        try:
            arrays[name] = _from_bytes(header, name, rows[:, start : start + size], levels, backend)
        except CorruptStreamError as error:
            raise BlobError(f"cachegen block: {error}") from None
        start = end
    return arrays


def _from_bytes(header: Header, name: str, rows: Array, levels: int, backend: str) -> Array:
    lmcache, channels = header.quantizer == "lmcache", header.channels
    if name == "scales":
        return _maxima(header, rows) if lmcache else _exponents(header, rows)
    if name == "centres":
        return _centres(rows, channels, levels, backend) if lmcache else _offsets(header, rows)
    if name == "tables":
        return unpack_rows(rows, channels, TABLE_BITS, backend=backend)
    if name == "flags":
        return unpack_rows(rows, channels, 1, backend=backend).view(bool)
    if name == "refinements":
        values = unpack_rows(rows, header.refined_tokens * channels, header.refine_bits, backend=backend)
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


def _centres(rows: Array, channels: int, levels: int, backend: str) -> Array:
    centres = unpack_rows(rows, channels, symbol_bits(levels), backend=backend)
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
