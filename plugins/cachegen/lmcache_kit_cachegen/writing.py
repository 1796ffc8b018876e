"""Blocks to payloads: here it is decided how each is written, and the bytes are put together.

What takes time was done in :mod:`lmcache_kit_cachegen.coding`. What is left depends on all of a chunk's blocks (modes,
widths, order) and is little; the words are copied once, into the payload.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from lmcache_kit_kernels import blocks as kernel

from lmcache_kit_cachegen.coding import NOTHING, CodedBlocks, Piece, code_blocks, select
from lmcache_kit_cachegen.container import Entry, write_directory
from lmcache_kit_cachegen.header import Header, Mode, padded
from lmcache_kit_cachegen.sections import data_size, fixed_rows, fixed_size, little, packed_rows, symbol_bits

__all__ = ["choose_modes", "write_payloads"]

Array = np.ndarray[Any, np.dtype[Any]]

_EVEN = np.zeros(2, dtype=np.uint8)


def write_payloads(blocks: Array, header: Header, settings: kernel.Settings, backend: str) -> list[bytes]:
    """The payload of every chunk of ``blocks`` ``[n * B, T, C]``, T >= 1, whose ``settings`` name n * B blocks.

    ``header`` says what the chunks share; how wide their offsets and exponents are is found out here for each.
    """
    coded = code_blocks(blocks, header, settings, backend)
    chunks = [slice(start, start + header.blocks) for start in range(0, len(blocks), header.blocks)]
    return [_write(blocks[own], coded.some(own), header, select(settings, own), backend) for own in chunks]


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


@dataclass(frozen=True, slots=True, eq=False)
class _Parts:
    """The pieces of a block's two parts; of a data part's words the last may yet be made even."""

    fixed: tuple[Piece, ...]
    data: Piece

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


def _write(blocks: Array, coded: CodedBlocks, header: Header, settings: kernel.Settings, backend: str) -> bytes:
    levels = settings.levels
    header = _widths(header, coded, coded.usable)
    modes = choose_modes(header, levels, coded.word_counts, coded.usable, coded.zero)
    header = _widths(header, coded, np.array([mode in (Mode.PACKED, Mode.CODED) for mode in modes]))

    parts: dict[int, _Parts] = {}
    for mode, level in sorted({(mode, level) for mode, level in zip(modes, levels, strict=True)}):
        some = np.array([place for place, kind in enumerate(zip(modes, levels, strict=True)) if kind == (mode, level)])
        if mode is Mode.ZERO:
            parts.update(dict.fromkeys(some.tolist(), _Parts((), NOTHING)))
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
    fixed = [piece.data.data for part in ordered for piece in part.fixed]
    data = [array.data for part in ordered for array in part.written()]
    return b"".join([write_directory(header, entries), *fixed, *data])


def _widths(header: Header, coded: CodedBlocks, chosen: Array) -> Header:
    """``header`` with offsets and exponents as narrow as the ``chosen`` blocks allow."""
    if header.quantizer == "lmcache":
        return header
    offsets, exponents = coded.arrays["centres"][chosen], coded.arrays["scales"][chosen]
    narrow = not offsets.size or (int(offsets.min()) >= -128 and int(offsets.max()) <= 127)
    return replace(header, offset_bytes=1 if narrow else 2, exponent_bytes=int(bool(exponents.any())))


def _verbatim(block: Array, backend: str) -> _Parts:
    data = little(block[None])[0]
    missing = -data.size % 4
    return _Parts((), Piece.of(np.pad(data, (0, missing)) if missing else data, backend))


def _written_coded(
    blocks: Array, coded: CodedBlocks, some: Array, header: Header, settings: kernel.Settings, level: int, backend: str
) -> Iterator[tuple[int, _Parts]]:
    rows = fixed_rows(header, Mode.CODED, level, {name: array[some] for name, array in coded.arrays.items()}, backend)
    for place, row in zip(some.tolist(), rows, strict=True):
        yield place, _Parts((Piece.of(row, backend), coded.refinements[place]), coded.words[place])


def _written_packed(
    blocks: Array, coded: CodedBlocks, some: Array, header: Header, settings: kernel.Settings, level: int, backend: str
) -> Iterator[tuple[int, _Parts]]:
    quantized = kernel.quantize(blocks[some], select(settings, some), backend=backend)
    rows = fixed_rows(header, Mode.PACKED, level, {"scales": quantized.scales, "centres": quantized.centres}, backend)
    data = packed_rows(quantized.symbols.reshape(len(some), -1), symbol_bits(level), backend)
    for place, row, body in zip(some.tolist(), rows, data, strict=True):
        yield place, _Parts((Piece.of(row, backend), coded.refinements[place]), Piece.of(body, backend))
