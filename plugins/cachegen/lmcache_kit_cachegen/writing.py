"""Blocks to payloads: the kernels code them, here it is decided how each is written, and the bytes are put together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from lmcache_kit_kernels import blocks as kernel
from lmcache_kit_kernels.checks import weighted_sum

from lmcache_kit_cachegen.bits import pack_rows
from lmcache_kit_cachegen.container import Entry, write_directory
from lmcache_kit_cachegen.header import Header, Mode, padded
from lmcache_kit_cachegen.sections import data_size, fixed_rows, fixed_size, little, pad_columns, symbol_bits

__all__ = ["choose_modes", "write_payloads"]

Array = np.ndarray[Any, np.dtype[Any]]
Part = tuple[Array, Array]
"""A block's fixed and data part, uint8."""

_ONE = 0x3F80  # bfloat16 pattern of the inverse step that a block of zeros has
_NOTHING = np.zeros(0, dtype=np.uint8)


def write_payloads(blocks: Array, header: Header, settings: kernel.Settings, backend: str) -> list[bytes]:
    """The payload of every chunk of ``blocks`` ``[n * B, T, C]``, T >= 1, whose ``settings`` name n * B blocks.

    ``header`` says what the chunks share; how wide their offsets and exponents are is found out here for each.
    """
    coded = kernel.encode(blocks, settings, backend=backend)
    ends = np.concatenate([[0], np.cumsum(coded.counts.sum(axis=1, dtype=np.int64))])
    return [
        _write(blocks, coded, ends, slice(start, start + header.blocks), header, settings, backend)
        for start in range(0, len(blocks), header.blocks)
    ]


def choose_modes(header: Header, levels: tuple[int, ...], words: Array, usable: Array, zero: Array) -> list[Mode]:
    """How each block is written: zeros not at all, others coded where that is smaller than packed, and as they are
    where that is smaller than both or the quantizer cannot represent them."""
    raw = data_size(header, Mode.VERBATIM, 0)
    modes = []
    for level, count, good, nothing in zip(levels, words, usable, zero, strict=True):
        coded = fixed_size(header, Mode.CODED, level) + padded(2 * int(count))
        packed = fixed_size(header, Mode.PACKED, level) + data_size(header, Mode.PACKED, level)
        if nothing:
            modes.append(Mode.ZERO)
        elif not good or min(coded, packed) > raw:
            modes.append(Mode.VERBATIM)
        else:
            modes.append(Mode.CODED if coded < packed else Mode.PACKED)
    return modes


def _widths(header: Header, coded: kernel.Coded, chosen: Array) -> Header:
    """``header`` with offsets and exponents as narrow as the ``chosen`` blocks allow."""
    if header.quantizer == "lmcache":
        return header
    offsets, exponents = coded.centres[chosen], coded.scales[chosen]
    narrow = not offsets.size or (int(offsets.min()) >= -128 and int(offsets.max()) <= 127)
    return replace(header, offset_bytes=1 if narrow else 2, exponent_bytes=int(bool(exponents.any())))


def _write(
    blocks: Array,
    coded: kernel.Coded,
    ends: Array,
    chunk: slice,
    header: Header,
    settings: kernel.Settings,
    backend: str,
) -> bytes:
    indices = np.arange(chunk.start, chunk.stop)
    levels = settings.levels[chunk]
    usable = coded.usable[chunk] & ~_overflows(coded, ends, chunk, header, settings, backend)
    header = _widths(header, coded, indices[usable])
    zero = _zero(blocks, coded, indices, header)
    modes = choose_modes(header, levels, np.diff(ends[chunk.start : chunk.stop + 1]), usable, zero)
    header = _widths(header, coded, indices[[mode in (Mode.PACKED, Mode.CODED) for mode in modes]])

    parts: dict[int, Part] = {}
    for mode, level in sorted({(mode, level) for mode, level in zip(modes, levels, strict=True)}):
        some = indices[[kind == (mode, level) for kind in zip(modes, levels, strict=True)]]
        if mode is Mode.ZERO:
            parts.update((int(index), (_NOTHING, _NOTHING)) for index in some)
        elif mode is Mode.VERBATIM:
            data = pad_columns(little(blocks[some]))
            parts.update((int(index), (_NOTHING, row)) for index, row in zip(some, data, strict=True))
        elif mode is Mode.PACKED:
            parts.update(_packed(blocks, some, header, settings, level, backend))
        else:
            parts.update(_coded(coded, ends, some, header, level))

    entries = []
    for index, mode, level in zip(indices, modes, levels, strict=True):
        fixed, data = parts[int(index)]
        check = weighted_sum(fixed.view("<u2")) + weighted_sum(data.view("<u2"), fixed.size // 2)
        plain = mode in (Mode.VERBATIM, Mode.ZERO)
        entries.append(
            Entry(
                mode,
                0 if plain else level,
                0 if plain else int(coded.inverses[index]),
                check % 2**32,
                fixed.size,
                data.size,
            )
        )
    ordered = [parts[int(index)] for index in indices]
    head = write_directory(header, entries)
    return b"".join([head, *(fixed.data for fixed, _ in ordered), *(data.data for _, data in ordered)])


def _zero(blocks: Array, coded: kernel.Coded, indices: Array, header: Header) -> Array:
    """bool ``[B]``: which blocks hold nothing but zeros. Refinement could not give those back: its cells have no middle
    at zero."""
    if header.quantizer == "lmcache":
        return np.asarray(~_nonzero(coded.scales[indices]).any(axis=1))
    # Looking at every value only of blocks that may well be zero.
    zero = np.zeros(len(indices), dtype=bool)
    for place in np.flatnonzero((coded.inverses[indices] == _ONE) & ~coded.centres[indices].any(axis=1)):
        zero[place] = not _nonzero(blocks[indices[place]]).any()
    return zero


def _nonzero(values: Array) -> Array:
    # By their bits without the sign: a conversion to bool would warn of NaN.
    return (values.view(f"u{values.itemsize}") << np.uint8(1)).astype(bool)


def _overflows(
    coded: kernel.Coded, ends: Array, chunk: slice, header: Header, settings: kernel.Settings, backend: str
) -> Array:
    """bool ``[B]``: whether some value of a block would come back infinite: near the end of float16's range the nearest
    step can lie beyond it. (The other dtypes end far beyond what the quantizer takes.)"""
    found = np.zeros(chunk.stop - chunk.start, dtype=bool)
    if header.quantizer == "lmcache" or header.layout.dtype != "float16":
        return found
    inverses = (coded.inverses[chunk].astype(np.uint32) << np.uint32(16)).view(np.float32)
    offsets = np.abs(coded.centres[chunk].astype(np.int32)).max(axis=1)
    most = (offsets + 64 * np.exp2(coded.scales[chunk].max(axis=1).astype(np.float64))) / inverses
    for place in np.flatnonzero(coded.usable[chunk] & (most >= np.finfo(np.float16).max)):
        some = np.array([chunk.start + place])
        one = replace(
            coded,
            **{
                name: array[some]
                for name in ("scales", "inverses", "centres", "tables", "flags", "refinements", "states", "counts")
                if (array := getattr(coded, name)) is not None
            },
            words=coded.words[ends[some[0]] : ends[some[0] + 1]],
            usable=coded.usable[some],
        )
        values = kernel.decode(one, select(settings, some), header.layout.np_dtype, backend=backend)
        found[place] = not np.isfinite(values).all()
    return found


def _coded(coded: kernel.Coded, ends: Array, some: Array, header: Header, level: int) -> list[tuple[int, Part]]:
    arrays = {
        "scales": coded.scales[some],
        "centres": coded.centres[some],
        "tables": coded.tables[some],
        "counts": coded.counts[some],
        "states": coded.states[some],
    }
    if coded.flags is not None:
        arrays["flags"] = coded.flags[some]
    if coded.refinements is not None:
        arrays["refinements"] = coded.refinements[some]
    fixed = fixed_rows(header, Mode.CODED, level, arrays)
    parts = []
    for index, row in zip(some, fixed, strict=True):
        words = coded.words[ends[index] : ends[index + 1]].astype("<u2", copy=False)
        if words.size % 2:
            words = np.append(words, np.zeros(1, dtype="<u2"))
        parts.append((int(index), (row, words.view(np.uint8))))
    return parts


def _packed(
    blocks: Array, some: Array, header: Header, settings: kernel.Settings, level: int, backend: str
) -> list[tuple[int, Part]]:
    quantized = kernel.quantize(blocks[some], select(settings, some), backend=backend)
    arrays = {"scales": quantized.scales, "centres": quantized.centres}
    if quantized.refinements is not None:
        arrays["refinements"] = quantized.refinements
    fixed = fixed_rows(header, Mode.PACKED, level, arrays)
    data = pad_columns(pack_rows(quantized.symbols.reshape(len(some), -1), symbol_bits(level)))
    return [(int(index), (row, body)) for index, row, body in zip(some, fixed, data, strict=True)]


def select(settings: kernel.Settings, some: Array) -> kernel.Settings:
    """``settings`` of some of its blocks."""
    given = settings.log_variances
    return replace(
        settings,
        levels=tuple(settings.levels[index] for index in some),
        log_variances=None if given is None else tuple(given[index] for index in some),
    )
