"""Backend ``numba``: all stages of a block one after another while it lies in the cache, blocks over all cores.

The kernels are in the modules ``numba_quantize`` (values and symbols), ``numba_statistics`` (symbols and coded symbols)
and ``numba_rans`` (coded symbols and words). This module cuts the work into ranges of blocks and hands arrays over.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from lmcache_kit_kernels.blocks import numba_quantize, numba_rans, numba_statistics
from lmcache_kit_kernels.blocks.numba_compile import sealed
from lmcache_kit_kernels.blocks.records import Coded, Quantized, Settings
from lmcache_kit_kernels.errors import CorruptStreamError
from lmcache_kit_kernels.tables import ALPHABETS, NUM_TABLES, PROBABILITY_BITS, UNIT_GAIN, TableSet, decoding_table
from lmcache_kit_kernels.threads import over_blocks
from lmcache_kit_kernels.uniform.arguments import LEVELS, ONE

__all__ = ["decode", "dequantize", "encode", "quantize"]

Array = np.ndarray[Any, np.dtype[Any]]

_KINDS = {
    np.dtype(ml_dtypes.bfloat16): numba_quantize.BFLOAT16,
    np.dtype(np.float16): numba_quantize.FLOAT16,
    np.dtype(np.float32): numba_quantize.FLOAT32,
}
_FAULTS = {
    1: "word counts do not add up to the words at hand",
    2: "a run of words ends elsewhere than its count says",
    3: "a lane starts below the range of coder states",
    4: "a lane does not end in the state that encoding began with",
}


class _Alphabets(NamedTuple):
    """The tables of all alphabets one after another, as the kernels look things up; ``numbers`` and
    ``entry_firsts`` say which row, and which stretch of the entries, an alphabet has."""

    numbers: dict[int, int]
    entries: Array
    entry_firsts: dict[int, int]
    slots: Array
    thresholds: Array
    covers: Array


@functools.lru_cache(maxsize=16)
def _alphabets(*tables: TableSet) -> _Alphabets:
    entries = [numba_rans.entries_of(table.frequencies).reshape(-1) for table in tables]
    covers = np.zeros((len(tables), ALPHABETS[-1] // 2 + 1), np.uint8)
    for row, table in zip(covers, tables, strict=True):
        row[: table.cover.size] = table.cover
    edges = np.cumsum([0, *(part.size for part in entries)])
    return _Alphabets(
        {table.levels: number for number, table in enumerate(tables)},
        sealed(np.concatenate(entries), np.uint64),
        {table.levels: int(edge) for table, edge in zip(tables, edges, strict=False)},
        sealed(np.concatenate([decoding_table(table).reshape(-1) for table in tables]), np.uint32),
        sealed(np.stack([table.thresholds for table in tables]), np.uint32),
        sealed(covers),
    )


def _used(settings: Settings) -> _Alphabets:
    return _alphabets(*(settings.tables[levels] for levels in sorted(settings.tables)))


def _bytes(blocks: Array) -> Array:
    """Values as bytes, contiguous."""
    bits = blocks.view(f"u{blocks.itemsize}")  # copying plain integers holds no GIL
    return sealed(np.ascontiguousarray(bits).reshape(-1).view(np.uint8))


def _from_patterns(maxima: Array, dtype: np.dtype[Any]) -> Array:
    return maxima.astype(f"u{dtype.itemsize}").view(dtype)


def _quantized(blocks: Array, settings: Settings, first: int) -> Quantized:
    """Quantizes some blocks of a call, the first of which is number ``first`` of all."""
    count, tokens, channels = blocks.shape
    kind = _KINDS[blocks.dtype]
    symbols = np.empty(blocks.shape, np.uint8)
    usable = np.empty(count, np.bool_)
    inverses = np.zeros(count, np.uint16)
    if settings.quantizer == "lmcache":
        maxima = np.empty((count, tokens), np.uint32)
        levels = sealed(np.array(settings.levels[first : first + count]), np.int32)
        numba_quantize.lmcache_quantize(_bytes(blocks), kind, levels, symbols, maxima, usable)
        centres = np.zeros((count, channels), np.uint8)
        return Quantized(_from_patterns(maxima, blocks.dtype), inverses, centres, symbols, None, usable)
    refined = min(settings.refined_tokens, tokens)
    given = settings.log_variances
    exponents = np.empty((count, tokens), np.uint8)
    offsets = np.empty((count, channels), np.int16)
    refinements = np.empty((count, refined, channels), np.uint8)
    numba_quantize.uniform_quantize(
        _bytes(blocks),
        kind,
        settings.ratio,
        sealed(np.array(() if given is None else given[first : first + count]), np.int64),
        settings.refine_bits,
        symbols,
        exponents,
        inverses,
        offsets,
        refinements,
        usable,
    )
    if not usable.all():  # as the reference has it: a block of zeros
        for array, value in (
            (symbols, 0),
            (exponents, 0),
            (inverses, ONE),
            (offsets, 0),
            (refinements, 1 << settings.refine_bits >> 1),
        ):
            array[~usable] = value
    return Quantized(exponents, inverses, offsets, symbols, refinements if refined else None, usable)


def quantize(blocks: Array, settings: Settings) -> Quantized:
    """See :func:`lmcache_kit_kernels.blocks.quantize`."""
    count, tokens, channels = blocks.shape
    parts = over_blocks(count, tokens * channels, lambda some: _quantized(blocks[some], settings, some.start))
    return Quantized(*_joined(parts, Quantized.__slots__))


def _joined(parts: list[Any], names: tuple[str, ...]) -> list[Any]:
    columns = [[getattr(part, name) for part in parts] for name in names]
    return [None if column[0] is None else np.concatenate(column) for column in columns]


def encode(blocks: Array, settings: Settings) -> Coded:
    """See :func:`lmcache_kit_kernels.blocks.encode`."""
    count, tokens, channels = blocks.shape
    parts = over_blocks(count, tokens * channels, lambda some: _encoded(blocks[some], settings, some.start))
    return Coded(*_joined(parts, Coded.__slots__))


def _encoded(blocks: Array, settings: Settings, first: int) -> Coded:
    count, tokens, channels = blocks.shape
    alphabets = _used(settings)
    quantized = _quantized(blocks, settings, first)
    centred = settings.quantizer == "lmcache"
    levels = settings.levels[first : first + count]
    sizes = sealed(np.array(levels), np.int32)
    tables = np.empty((count, channels), np.uint8)
    flags = np.zeros((count, channels), np.bool_)
    centres = quantized.centres if centred else np.empty((count, 0), np.uint8)
    symbols = quantized.symbols
    numba_statistics.describe(
        symbols,
        sizes,
        centred,
        settings.anchor_group,
        sealed(np.array([alphabets.numbers[size] for size in levels]), np.int32),
        alphabets.thresholds,
        alphabets.covers,
        centres,
        tables,
        flags,
    )
    lanes = channels // settings.fold
    states = np.empty((count, lanes), np.uint32)
    counts = np.empty((count, -(-lanes // settings.group)), np.uint32)
    words = np.empty(symbols.size, np.uint16)
    written = numba_rans.encode(
        sealed(symbols.reshape(count, tokens * channels)),
        sealed(tables),
        sealed(np.array([alphabets.entry_firsts[size] for size in levels]), np.int32),
        sizes,
        alphabets.entries,
        settings.fold,
        min(settings.group, lanes),
        states,
        counts,
        words,
    )
    return Coded(
        quantized.scales,
        quantized.inverses,
        quantized.centres,
        tables,
        flags if settings.anchor_group else None,
        quantized.refinements,
        states,
        counts,
        words[:written].copy(),
        quantized.usable,
    )


def decode(coded: Coded, settings: Settings, dtype: Any) -> Array:
    """See :func:`lmcache_kit_kernels.blocks.decode`."""
    count, channels = coded.centres.shape
    tokens = coded.scales.shape[1]
    per_block = coded.counts.sum(axis=1, dtype=np.uint64)
    edges = np.concatenate([np.zeros(1, np.uint64), np.cumsum(per_block)])
    if int(edges[-1]) != coded.words.size:
        raise CorruptStreamError(_FAULTS[1])
    if coded.tables.size and int(coded.tables.max()) >= NUM_TABLES:
        raise CorruptStreamError(f"there is no table {int(coded.tables.max())}")
    blocks = np.empty((count, tokens, channels), dtype)

    def work(some: slice) -> None:
        symbols = _symbols(coded, settings, some, coded.words[int(edges[some.start]) : int(edges[some.stop])])
        gains = settings.tables[LEVELS].gains[coded.tables[some]] if settings.quantizer == "uniform" else None
        _dequantized(_part(coded, symbols, some), settings, some.start, gains, blocks[some])

    over_blocks(count, tokens * channels, work)
    return blocks


def _symbols(coded: Coded, settings: Settings, some: slice, words: Array) -> Array:
    """The quantizer's symbols of some blocks. Raises CorruptStreamError."""
    alphabets = _used(settings)
    levels = settings.levels[some]
    count, channels = coded.centres[some].shape
    tokens = coded.scales.shape[1]
    symbols = np.empty((count, tokens, channels), np.uint8)
    fault = numba_rans.decode(
        symbols.reshape(count, tokens * channels),
        sealed(coded.tables[some], np.uint8),
        sealed(np.array([alphabets.numbers[size] * (NUM_TABLES << PROBABILITY_BITS) for size in levels]), np.int32),
        alphabets.slots,
        settings.fold,
        min(settings.group, channels // settings.fold),
        sealed(coded.states[some], np.uint32),
        sealed(coded.counts[some], np.uint32),
        sealed(words, np.uint16),
    )
    if fault:
        raise CorruptStreamError(_FAULTS[fault])
    centred = settings.quantizer == "lmcache"
    if centred or settings.anchor_group:
        numba_statistics.restore(
            symbols,
            sealed(np.array(levels), np.int32),
            centred,
            settings.anchor_group,
            sealed(coded.centres[some] if centred else np.empty((count, 0)), np.uint8),
            sealed(np.empty((count, 0)) if coded.flags is None else coded.flags[some], np.bool_),
        )
    return symbols


def dequantize(quantized: Quantized, settings: Settings, dtype: Any, gains: Array | None) -> Array:
    """See :func:`lmcache_kit_kernels.blocks.dequantize`."""
    blocks = np.empty(quantized.symbols.shape, dtype)

    def work(some: slice) -> None:
        part = _part(quantized, quantized.symbols[some], some)
        _dequantized(part, settings, some.start, None if gains is None else gains[some], blocks[some])

    over_blocks(blocks.shape[0], blocks[:1].size, work)
    return blocks


def _part(whole: Coded | Quantized, symbols: Array, some: slice) -> Quantized:
    """Some blocks of ``whole``, whose symbols are known."""
    refinements = None if whole.refinements is None else whole.refinements[some]
    return Quantized(
        whole.scales[some], whole.inverses[some], whole.centres[some], symbols, refinements, whole.usable[some]
    )


def _dequantized(part: Quantized, settings: Settings, first: int, gains: Array | None, blocks: Array) -> None:
    """Fill ``blocks``, contiguous, from blocks number ``first`` on of a call."""
    count, _, channels = blocks.shape
    kind = _KINDS[blocks.dtype]
    raw = blocks.view(f"u{blocks.itemsize}").reshape(-1).view(np.uint8)
    symbols = sealed(part.symbols, np.uint8)
    if settings.quantizer == "lmcache":
        levels = sealed(np.array(settings.levels[first : first + count]), np.int32)
        numba_quantize.lmcache_dequantize(symbols, sealed(part.scales.astype(np.float32)), levels, kind, raw)
        return
    if gains is None:
        gains = np.full((count, channels), UNIT_GAIN, np.uint16)
    refinements = part.refinements
    numba_quantize.uniform_dequantize(
        symbols,
        sealed(part.scales, np.uint8),
        sealed(part.inverses, np.uint16),
        sealed(part.centres, np.int16),
        sealed(np.empty((count, 0, channels)) if refinements is None else refinements, np.uint8),
        settings.refine_bits,
        sealed(gains.astype(np.float32) / np.float32(UNIT_GAIN)),
        kind,
        raw,
    )
