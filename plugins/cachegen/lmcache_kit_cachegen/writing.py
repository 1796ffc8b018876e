"""Blocks to payloads: the kernels code them, here it is decided how each is written, and the bytes are put together.

What takes time is done range by range on all cores, while a range lies in the cache: coding, packing refinements,
summing for the checks. What depends on all of a chunk's blocks (modes, widths, order) comes after it and is little; the
words are copied once, into the payload.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from lmcache_kit_kernels import blocks as kernel
from lmcache_kit_kernels.checks import word_sums
from lmcache_kit_kernels.threads import block_ranges, in_parallel

from lmcache_kit_cachegen.container import Entry, write_directory
from lmcache_kit_cachegen.header import Header, Mode, padded
from lmcache_kit_cachegen.sections import (
    data_size,
    fixed_rows,
    fixed_size,
    little,
    packed_rows,
    refinement_rows,
    symbol_bits,
)

__all__ = ["choose_modes", "write_payloads"]

Array = np.ndarray[Any, np.dtype[Any]]

_ONE = 0x3F80  # bfloat16 pattern of the inverse step that a block of zeros has
_ARRAYS = ("scales", "centres", "tables", "flags", "counts", "states")
_EVEN = np.zeros(2, dtype=np.uint8)


def write_payloads(blocks: Array, header: Header, settings: kernel.Settings, backend: str) -> list[bytes]:
    """The payload of every chunk of ``blocks`` ``[n * B, T, C]``, T >= 1, whose ``settings`` name n * B blocks.

    ``header`` says what the chunks share; how wide their offsets and exponents are is found out here for each.
    """
    # Only compiled loops work on several cores at once; the others take all blocks in one call.
    ranges = block_ranges(len(blocks), blocks[0].size) if backend == "numba" else [slice(0, len(blocks))]
    parts = in_parallel(lambda some: _code(blocks[some], header, select(settings, some), backend), ranges)
    coded = _joined(parts)
    return [
        _write(blocks[start : start + header.blocks], coded.some(start, start + header.blocks), header, chunk, backend)
        for start in range(0, len(blocks), header.blocks)
        for chunk in [select(settings, slice(start, start + header.blocks))]
    ]


def choose_modes(header: Header, levels: tuple[int, ...], words: Array, usable: Array, zero: Array) -> list[Mode]:
    """How each block is written: zeros not at all, others coded where that is smaller than packed, and as they are
    where that is smaller than both or the quantizer cannot represent them."""
    raw = data_size(header, Mode.VERBATIM, 0)
    sizes = {
        level: (
            fixed_size(header, Mode.CODED, level),
            fixed_size(header, Mode.PACKED, level) + data_size(header, Mode.PACKED, level),
        )
        for level in set(levels)
    }
    modes = []
    for level, count, good, nothing in zip(levels, words, usable, zero, strict=True):
        fixed, packed = sizes[level]
        coded = fixed + padded(2 * int(count))
        if nothing:
            modes.append(Mode.ZERO)
        elif not good or min(coded, packed) > raw:
            modes.append(Mode.VERBATIM)
        else:
            modes.append(Mode.CODED if coded < packed else Mode.PACKED)
    return modes


# --- in ranges -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """Bytes as they will be written, with their sums: what their part of a check follows from wherever they come."""

    data: Array
    sums: tuple[int, int]

    @classmethod
    def of(cls, data: Array, backend: str) -> _Piece:
        return cls(data, word_sums(data.view("<u2"), backend=backend))


_NOTHING = _Piece(np.zeros(0, dtype=np.uint8), (0, 0))


@dataclass(frozen=True, slots=True, eq=False)
class _Coded:
    """Some blocks after coding: arrays as in :class:`lmcache_kit_kernels.blocks.Coded`; refinements (nothing without
    refinement) and words as pieces, one for each block."""

    arrays: dict[str, Array]
    inverses: Array
    refinements: list[_Piece]
    words: list[_Piece]
    word_counts: Array
    usable: Array
    zero: Array

    def some(self, start: int, stop: int) -> _Coded:
        if (start, stop) == (0, len(self.words)):
            return self
        own = slice(start, stop)
        return _Coded(
            {name: array[own] for name, array in self.arrays.items()},
            self.inverses[own],
            self.refinements[own],
            self.words[own],
            self.word_counts[own],
            self.usable[own],
            self.zero[own],
        )


def _joined(parts: Sequence[_Coded]) -> _Coded:
    if len(parts) == 1:
        return parts[0]

    def column(name: str) -> Array:
        return np.concatenate([getattr(part, name) for part in parts])

    return _Coded(
        {name: _concatenated([part.arrays[name] for part in parts]) for name in parts[0].arrays},
        column("inverses"),
        [piece for part in parts for piece in part.refinements],
        [piece for part in parts for piece in part.words],
        column("word_counts"),
        column("usable"),
        column("zero"),
    )


def _concatenated(arrays: Sequence[Array]) -> Array:
    # As plain integers: values of bfloat16 would be copied one by one.
    kind = arrays[0].dtype
    return np.concatenate([array.view(f"u{kind.itemsize}") for array in arrays]).view(kind)


def _code(blocks: Array, header: Header, settings: kernel.Settings, backend: str) -> _Coded:
    coded = kernel.encode(blocks, settings, backend=backend)
    counts = coded.counts.sum(axis=1, dtype=np.int64)
    ends = np.concatenate([[0], np.cumsum(counts)])
    words = coded.words.astype("<u2", copy=False)
    refinements = [_NOTHING] * len(blocks)
    if coded.refinements is not None:
        rows = refinement_rows(coded.refinements, header.refine_bits, backend)
        refinements = [_Piece.of(row, backend) for row in rows]
    return _Coded(
        {name: array for name in _ARRAYS if (array := getattr(coded, name)) is not None},
        coded.inverses,
        refinements,
        # An odd number of words is made even in the end: a zero adds nothing to the sums.
        [_words(words[start:stop], backend) for start, stop in itertools.pairwise(ends)],
        counts,
        coded.usable & ~_overflows(coded, ends, header, settings, backend),
        _zero(blocks, coded, header),
    )


def _words(words: Array, backend: str) -> _Piece:
    return _Piece(words.view(np.uint8), word_sums(words, backend=backend))


def _zero(blocks: Array, coded: kernel.Coded, header: Header) -> Array:
    """bool ``[B]``: which blocks hold nothing but zeros. Refinement could not give those back: its cells have no middle
    at zero."""
    if header.quantizer == "lmcache":
        return np.asarray(~_nonzero(coded.scales).any(axis=1))
    # Looking at every value only of blocks that may well be zero.
    zero = np.zeros(len(blocks), dtype=bool)
    for place in np.flatnonzero((coded.inverses == _ONE) & ~coded.centres.any(axis=1)):
        zero[place] = not _nonzero(blocks[place]).any()
    return zero


def _nonzero(values: Array) -> Array:
    # By their bits without the sign: a conversion to bool would warn of NaN.
    return (values.view(f"u{values.itemsize}") << np.uint8(1)).astype(bool)


def _overflows(coded: kernel.Coded, ends: Array, header: Header, settings: kernel.Settings, backend: str) -> Array:
    """bool ``[B]``: whether some value of a block would come back infinite: near the end of float16's range the nearest
    step can lie beyond it. (The other dtypes end far beyond what the quantizer takes.)"""
    found = np.zeros(len(coded.usable), dtype=bool)
    if header.quantizer == "lmcache" or header.layout.dtype != "float16":
        return found
    inverses = (coded.inverses.astype(np.uint32) << np.uint32(16)).view(np.float32)
    offsets = np.abs(coded.centres.astype(np.int32)).max(axis=1)
    most = (offsets + 64 * np.exp2(coded.scales.max(axis=1).astype(np.float64))) / inverses
    for place in np.flatnonzero(coded.usable & (most >= np.finfo(np.float16).max)):
        some = slice(int(place), int(place) + 1)
        one = replace(
            coded,
            **{
                name: array[some]
                for name in (*_ARRAYS, "inverses", "refinements")
                if (array := getattr(coded, name)) is not None
            },
            words=coded.words[ends[place] : ends[place + 1]],
            usable=coded.usable[some],
        )
        values = kernel.decode(one, select(settings, some), header.layout.np_dtype, backend=backend)
        found[place] = not np.isfinite(values).all()
    return found


# --- chunk by chunk --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Parts:
    """The pieces of a block's two parts; of a data part's words the last may yet be made even."""

    fixed: tuple[_Piece, ...]
    data: _Piece

    def check(self) -> int:
        total = first = 0
        for piece in (*self.fixed, self.data):
            weighted, plain = piece.sums
            total += weighted + 2 * first * plain
            first += piece.data.size // 2
        return total % 2**32

    @property
    def fixed_size(self) -> int:
        return sum(piece.data.size for piece in self.fixed)

    def written(self) -> Iterator[Array]:
        yield self.data.data
        if self.data.data.size % 4:
            yield _EVEN


def _write(blocks: Array, coded: _Coded, header: Header, settings: kernel.Settings, backend: str) -> bytes:
    levels = settings.levels
    header = _widths(header, coded, coded.usable)
    modes = choose_modes(header, levels, coded.word_counts, coded.usable, coded.zero)
    header = _widths(header, coded, np.array([mode in (Mode.PACKED, Mode.CODED) for mode in modes]))

    parts: dict[int, _Parts] = {}
    for mode, level in sorted({(mode, level) for mode, level in zip(modes, levels, strict=True)}):
        some = np.array([place for place, kind in enumerate(zip(modes, levels, strict=True)) if kind == (mode, level)])
        if mode is Mode.ZERO:
            parts.update(dict.fromkeys(some.tolist(), _Parts((), _NOTHING)))
        elif mode is Mode.VERBATIM:
            parts.update((place, _verbatim(blocks[place], backend)) for place in some.tolist())
        else:
            write = _written_packed if mode is Mode.PACKED else _written_coded
            parts.update(write(blocks, coded, some, header, settings, level, backend))

    entries = []
    for place, (mode, level) in enumerate(zip(modes, levels, strict=True)):
        part = parts[place]
        plain = mode in (Mode.VERBATIM, Mode.ZERO)
        inverse = 0 if plain else int(coded.inverses[place])
        size = padded(part.data.data.size)
        entries.append(Entry(mode, 0 if plain else level, inverse, part.check(), part.fixed_size, size))
    ordered = [parts[place] for place in range(len(modes))]
    fixed = (piece.data for part in ordered for piece in part.fixed)
    data = (array for part in ordered for array in part.written())
    return b"".join([write_directory(header, entries), *fixed, *data])


def _widths(header: Header, coded: _Coded, chosen: Array) -> Header:
    """``header`` with offsets and exponents as narrow as the ``chosen`` blocks allow."""
    if header.quantizer == "lmcache":
        return header
    offsets, exponents = coded.arrays["centres"][chosen], coded.arrays["scales"][chosen]
    narrow = not offsets.size or (int(offsets.min()) >= -128 and int(offsets.max()) <= 127)
    return replace(header, offset_bytes=1 if narrow else 2, exponent_bytes=int(bool(exponents.any())))


def _verbatim(block: Array, backend: str) -> _Parts:
    data = little(block[None])[0]
    missing = -data.size % 4
    return _Parts((), _Piece.of(np.pad(data, (0, missing)) if missing else data, backend))


def _written_coded(
    blocks: Array, coded: _Coded, some: Array, header: Header, settings: kernel.Settings, level: int, backend: str
) -> Iterator[tuple[int, _Parts]]:
    rows = fixed_rows(header, Mode.CODED, level, {name: array[some] for name, array in coded.arrays.items()}, backend)
    for place, row in zip(some.tolist(), rows, strict=True):
        yield place, _Parts((_Piece.of(row, backend), coded.refinements[place]), coded.words[place])


def _written_packed(
    blocks: Array, coded: _Coded, some: Array, header: Header, settings: kernel.Settings, level: int, backend: str
) -> Iterator[tuple[int, _Parts]]:
    quantized = kernel.quantize(blocks[some], select(settings, some), backend=backend)
    rows = fixed_rows(header, Mode.PACKED, level, {"scales": quantized.scales, "centres": quantized.centres}, backend)
    data = packed_rows(quantized.symbols.reshape(len(some), -1), symbol_bits(level), backend)
    for place, row, body in zip(some.tolist(), rows, data, strict=True):
        yield place, _Parts((_Piece.of(row, backend), coded.refinements[place]), _Piece.of(body, backend))


def select(settings: kernel.Settings, some: slice | Array) -> kernel.Settings:
    """``settings`` of some of its blocks."""
    given = settings.log_variances
    places = range(len(settings.levels))[some] if isinstance(some, slice) else some
    return replace(
        settings,
        levels=tuple(settings.levels[place] for place in places),
        log_variances=None if given is None else tuple(given[place] for place in places),
    )
