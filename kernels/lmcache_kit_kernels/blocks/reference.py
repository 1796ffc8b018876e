"""numpy implementation: the small operations one after another. The oracle of the other backends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from lmcache_kit_kernels.blocks.records import Coded, Quantized, Settings
from lmcache_kit_kernels.quantize import api as lmcache
from lmcache_kit_kernels.rans import api as rans
from lmcache_kit_kernels.statistics import api as statistics
from lmcache_kit_kernels.uniform import api as uniform

__all__ = ["decode", "dequantize", "encode", "quantize"]

Array = np.ndarray[Any, np.dtype[Any]]


def encode(blocks: Array, settings: Settings) -> Coded:
    """See :func:`lmcache_kit_kernels.blocks.encode`."""
    quantized = quantize(blocks, settings)
    count, tokens, channels = blocks.shape
    lanes = channels // settings.fold
    group = min(settings.group, lanes)
    centres, tables = quantized.centres.copy(), np.zeros((count, channels), np.uint8)
    flags = np.zeros((count, channels), bool) if settings.anchor_group else None
    states = np.zeros((count, lanes), np.uint32)
    counts = np.zeros((count, rans.groups_of(lanes, group)), np.uint32)
    runs: list[Array] = [np.zeros(0, np.uint16)] * count
    for levels, some in _by_levels(settings):
        table_set = settings.tables[levels]
        found = statistics.fit(
            quantized.symbols[some],
            table_set,
            centred=settings.quantizer == "uniform",
            anchor_group=settings.anchor_group,
        )
        streams = rans.encode(
            found.coded.reshape(len(some), tokens * settings.fold, lanes),
            found.tables.reshape(len(some), settings.fold, lanes),
            table_set,
            group=group,
        )
        tables[some], states[some], counts[some] = found.tables, streams.states, streams.counts
        if settings.quantizer == "lmcache":
            centres[some] = found.centres
        if flags is not None:
            flags[some] = found.flags
        ends = np.cumsum(streams.counts.sum(axis=1, dtype=np.int64))
        for index, run in zip(some, np.split(streams.words, ends[:-1]), strict=True):
            runs[index] = run
    return Coded(
        quantized.scales,
        quantized.inverses,
        centres,
        tables,
        flags,
        quantized.refinements,
        states,
        counts,
        np.concatenate([np.zeros(0, np.uint16), *runs]),
        quantized.usable,
    )


def decode(coded: Coded, settings: Settings, dtype: np.dtype[Any]) -> Array:
    """See :func:`lmcache_kit_kernels.blocks.decode`."""
    count, tokens = coded.scales.shape
    channels = coded.centres.shape[1]
    lanes = channels // settings.fold
    symbols = np.zeros((count, tokens, channels), np.uint8)
    gains = np.zeros((count, channels), np.uint16)
    sizes = coded.counts.sum(axis=1, dtype=np.int64)
    runs = np.split(coded.words, np.cumsum(sizes)[:-1]) if count else []
    for levels, some in _by_levels(settings):
        table_set = settings.tables[levels]
        streams = rans.Streams(coded.states[some], coded.counts[some], np.concatenate([runs[i] for i in some]))
        decoded = rans.decode(
            streams,
            coded.tables[some].reshape(len(some), settings.fold, lanes),
            table_set,
            tokens * settings.fold,
            group=settings.group,
        )
        centres = coded.centres[some] if settings.quantizer == "lmcache" else np.zeros((len(some), channels), np.uint8)
        flags = None if coded.flags is None else coded.flags[some]
        symbols[some] = statistics.restore(
            decoded.reshape(len(some), tokens, channels), centres, flags, levels, anchor_group=settings.anchor_group
        )
        gains[some] = table_set.gains[coded.tables[some]]
    quantized = Quantized(coded.scales, coded.inverses, coded.centres, symbols, coded.refinements, coded.usable)
    return dequantize(quantized, settings, dtype, gains if settings.quantizer == "uniform" else None)


def quantize(blocks: Array, settings: Settings) -> Quantized:
    """See :func:`lmcache_kit_kernels.blocks.quantize`."""
    count, _, channels = blocks.shape
    if settings.quantizer == "lmcache":
        symbols, maxima = lmcache.quantize(blocks, np.array(settings.levels, np.int32))
        zeros = np.zeros((count, channels), np.uint8)
        return Quantized(maxima, np.zeros(count, np.uint16), zeros, symbols, None, lmcache.representable(maxima))
    found = uniform.quantize(
        blocks,
        settings.ratio,
        log_variances=None if settings.log_variances is None else np.array(settings.log_variances, np.int32),
        refined_tokens=settings.refined_tokens,
        refine_bits=settings.refine_bits,
    )
    return Quantized(found.exponents, found.inverses, found.offsets, found.symbols, found.refinements, found.usable)


def dequantize(quantized: Quantized, settings: Settings, dtype: np.dtype[Any], gains: Array | None) -> Array:
    """See :func:`lmcache_kit_kernels.blocks.dequantize`."""
    if settings.quantizer == "lmcache":
        return lmcache.dequantize(quantized.symbols, quantized.scales, np.array(settings.levels, np.int32))
    found = uniform.Uniform(
        quantized.scales,
        quantized.inverses,
        quantized.centres,
        quantized.symbols,
        quantized.refinements,
        quantized.usable,
    )
    return uniform.dequantize(found, dtype, gains, refine_bits=settings.refine_bits)


def _by_levels(settings: Settings) -> Iterator[tuple[int, list[int]]]:
    for levels in sorted(set(settings.levels)):
        yield levels, [index for index, own in enumerate(settings.levels) if own == levels]
