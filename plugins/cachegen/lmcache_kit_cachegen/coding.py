"""Blocks through the kernels, for the payload: coded, refinements packed, sums for the checks taken.

All that takes time, range by range on all cores, while a range lies in the cache: what does not depend on the other
blocks of a chunk.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from lmcache_kit_kernels import blocks as kernel
from lmcache_kit_kernels.checks import word_sums
from lmcache_kit_kernels.threads import block_ranges, in_parallel

from lmcache_kit_cachegen.header import Header
from lmcache_kit_cachegen.sections import refinement_rows

__all__ = ["NOTHING", "CodedBlocks", "Piece", "code_blocks", "select"]

Array = np.ndarray[Any, np.dtype[Any]]

_ONE = 0x3F80  # bfloat16 pattern of the inverse step that a block of zeros has
_ARRAYS = ("scales", "centres", "tables", "flags", "counts", "states")


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Bytes as they will be written, with their sums: what their part of a check follows from wherever they come."""

    data: Array
    sums: tuple[int, int]

    @classmethod
    def of(cls, data: Array, backend: str) -> Piece:
        return cls(data, word_sums(data.view("<u2"), backend=backend))


NOTHING = Piece(np.zeros(0, dtype=np.uint8), (0, 0))


@dataclass(frozen=True, slots=True, eq=False)
class CodedBlocks:
    """Some blocks after coding: arrays as in :class:`lmcache_kit_kernels.blocks.Coded`; refinements (nothing without
    refinement) and words as pieces, one for each block."""

    arrays: dict[str, Array]
    inverses: Array
    refinements: list[Piece]
    words: list[Piece]
    word_counts: Array
    usable: Array
    zero: Array

    def some(self, own: slice) -> CodedBlocks:
        """Those of the range ``own``."""
        return CodedBlocks(
            {name: array[own] for name, array in self.arrays.items()},
            self.inverses[own],
            self.refinements[own],
            self.words[own],
            self.word_counts[own],
            self.usable[own],
            self.zero[own],
        )


def code_blocks(blocks: Array, header: Header, settings: kernel.Settings, backend: str) -> CodedBlocks:
    """Code blocks ``[n, T, C]``, T >= 1, of any number of chunks with equal headers, whatever modes they will have.

    Widths of offsets and exponents in ``header`` do not matter.
    """
    # Only compiled loops work on several cores at once; the others take all blocks in one call.
    ranges = block_ranges(len(blocks), blocks[0].size) if backend == "numba" else [slice(0, len(blocks))]
    return _joined(in_parallel(lambda some: _code(blocks[some], header, select(settings, some), backend), ranges))


def _joined(parts: Sequence[CodedBlocks]) -> CodedBlocks:
    if len(parts) == 1:
        return parts[0]

    def column(name: str) -> Array:
        return np.concatenate([getattr(part, name) for part in parts])

    return CodedBlocks(
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


def _code(blocks: Array, header: Header, settings: kernel.Settings, backend: str) -> CodedBlocks:
    coded = kernel.encode(blocks, settings, backend=backend)
    counts = coded.counts.sum(axis=1, dtype=np.int64)
    ends = np.concatenate([[0], np.cumsum(counts)])
    words = coded.words.astype("<u2", copy=False)
    refinements = [NOTHING] * len(blocks)
    if coded.refinements is not None:
        rows = refinement_rows(coded.refinements, header.refine_bits, backend)
        refinements = [Piece.of(row, backend) for row in rows]
    return CodedBlocks(
        {name: array for name in _ARRAYS if (array := getattr(coded, name)) is not None},
        coded.inverses,
        refinements,
        # An odd number of words is made even in the end: a zero adds nothing to the sums.
        [_words(words[start:stop], backend) for start, stop in itertools.pairwise(ends)],
        counts,
        coded.usable & ~_overflows(coded, ends, header, settings, backend),
        _zero(blocks, coded, header),
    )


def _words(words: Array, backend: str) -> Piece:
    return Piece(words.view(np.uint8), word_sums(words, backend=backend))


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


def select(settings: kernel.Settings, some: slice | Array) -> kernel.Settings:
    """``settings`` of some of its blocks."""
    given = settings.log_variances
    places = range(len(settings.levels))[some] if isinstance(some, slice) else some
    return replace(
        settings,
        levels=tuple(settings.levels[place] for place in places),
        log_variances=None if given is None else tuple(given[place] for place in places),
    )
