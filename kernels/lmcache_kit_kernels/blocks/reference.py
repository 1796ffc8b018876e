"""numpy implementation: the small operations one after another. The oracle of the other backends."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmcache_kit_kernels.blocks.alphabets import by_levels, join, select, split
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
    _, tokens, channels = blocks.shape
    lanes = channels // settings.fold
    parts = []
    for levels, some in by_levels(settings):
        table_set = settings.tables[levels]
        found = statistics.fit(
            select(quantized.symbols, some),
            table_set,
            centred=settings.quantizer == "uniform",
            anchor_group=settings.anchor_group,
        )
        streams = rans.encode(
            found.coded.reshape(len(some), tokens * settings.fold, lanes),
            found.tables.reshape(len(some), settings.fold, lanes),
            table_set,
            group=settings.group,
        )
        parts.append(
            Coded(
                quantized.scales[some],
                quantized.inverses[some],
                quantized.centres[some] if settings.quantizer == "uniform" else found.centres,
                found.tables,
                found.flags,
                None if quantized.refinements is None else quantized.refinements[some],
                streams.states,
                streams.counts,
                streams.words,
                quantized.usable[some],
            )
        )
    return join(settings, parts)


def decode(coded: Coded, settings: Settings, dtype: np.dtype[Any]) -> Array:
    """See :func:`lmcache_kit_kernels.blocks.decode`."""
    count, tokens = coded.scales.shape
    channels = coded.centres.shape[1]
    lanes = channels // settings.fold
    symbols = np.zeros((count, tokens, channels), np.uint8)
    gains = np.zeros((count, channels), np.uint16)
    for levels, some, own in split(settings, coded):
        table_set = settings.tables[levels]
        decoded = rans.decode(
            rans.Streams(own.states, own.counts, own.words),
            own.tables.reshape(len(some), settings.fold, lanes),
            table_set,
            tokens * settings.fold,
            group=settings.group,
        )
        symbols[some] = statistics.restore(
            decoded.reshape(len(some), tokens, channels),
            own.centres if settings.quantizer == "lmcache" else np.zeros((len(some), channels), np.uint8),
            own.flags,
            levels,
            anchor_group=settings.anchor_group,
        )
        gains[some] = table_set.gains[own.tables]
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
