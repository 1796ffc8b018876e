"""XLA implementation: one jitted function per direction for the blocks of one alphabet.

Only the words of the runs are gathered on the host.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmcache_kit_kernels.blocks.alphabets import by_levels, join, select, split
from lmcache_kit_kernels.blocks.records import Coded, Quantized, Settings
from lmcache_kit_kernels.quantize import xla as lmcache
from lmcache_kit_kernels.quantize.api import representable
from lmcache_kit_kernels.quantize.arguments import steps
from lmcache_kit_kernels.rans import xla as rans
from lmcache_kit_kernels.rans.api import check_ends
from lmcache_kit_kernels.statistics.xla import fit_traced, restore_traced
from lmcache_kit_kernels.tables import UNIT_GAIN, decoding_table
from lmcache_kit_kernels.uniform import xla as uniform

__all__ = ["decode", "dequantize", "encode", "quantize"]

Array = np.ndarray[Any, np.dtype[Any]]
Parts = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array]


def _quantize_lmcache(blocks: jax.Array, levels: jax.Array) -> Parts:
    symbols, maxima = lmcache.quantize_traced(blocks, levels)
    count, _, channels = blocks.shape
    zeros = jnp.zeros((count, channels), jnp.uint8)
    # What is usable is found on the host, from the maxima: a device may flush the smallest of them to zero.
    return maxima, jnp.zeros(count, jnp.uint16), zeros, symbols, None, jnp.ones(count, bool)


_STATIC = ("levels", "centred", "refined", "bits", "anchor_group", "fold")


@functools.partial(jax.jit, static_argnames=_STATIC)
def _encode(
    blocks: jax.Array,
    scaling: tuple[jax.Array, ...],
    log_variances: jax.Array | None,
    table_set: tuple[jax.Array, jax.Array, jax.Array],
    *,
    levels: int,
    centred: bool,
    refined: int,
    bits: int,
    anchor_group: int,
    fold: int,
) -> tuple[Parts, tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
    """What quantizing, fitting and coding return. ``scaling`` is ratio and share, or levels ``[B]``."""
    if centred:
        parts: Parts = uniform.quantize_traced(
            blocks, scaling[0], log_variances, scaling[1], refined=refined, bits=bits
        )
    else:
        parts = _quantize_lmcache(blocks, scaling[0])
    thresholds, cover, frequencies = table_set
    centres, tables, flags, coded = fit_traced(
        parts[3], thresholds, cover, levels=levels, centred=centred, anchor_group=anchor_group
    )
    count, tokens, channels = blocks.shape
    streams = rans.encode_traced(
        coded.reshape(count, tokens * fold, channels // fold),
        tables.reshape(count, fold, channels // fold),
        frequencies,
    )
    return parts, (centres, tables, flags), streams


def _scaling(settings: Settings, some: list[int], tokens: int) -> tuple[tuple[Any, ...], Array | None]:
    """Arguments of the quantizer for some of the blocks: the scaling, and log variances."""
    if settings.quantizer == "lmcache":
        return (np.array([settings.levels[index] for index in some], np.int32),), None
    logs = settings.log_variances
    chosen = None if logs is None else np.array([logs[index] for index in some], np.int32)
    return (np.int32(settings.ratio), uniform.token_share(tokens)), chosen


def _usable(settings: Settings, parts: Parts) -> Array:
    return np.asarray(parts[5]) if settings.quantizer == "uniform" else representable(np.asarray(parts[0]))


def encode(blocks: Array, settings: Settings) -> Coded:
    """See :func:`lmcache_kit_kernels.blocks.encode`."""
    _, tokens, channels = blocks.shape
    lanes = channels // settings.fold
    group = min(settings.group, lanes)
    some_coded = []
    for levels, some in by_levels(settings):
        table_set = settings.tables[levels]
        scaling, logs = _scaling(settings, some, tokens)
        parts, (centres, tables, flags), (states, words, full) = _encode(
            select(blocks, some),
            scaling,
            logs,
            (table_set.thresholds, table_set.cover, table_set.frequencies.astype(np.uint32)),
            levels=levels,
            centred=settings.quantizer == "uniform",
            refined=settings.refined_tokens,
            bits=settings.refine_bits,
            anchor_group=settings.anchor_group,
            fold=settings.fold,
        )
        some_coded.append(
            Coded(
                np.asarray(parts[0]),
                np.asarray(parts[1]),
                np.asarray(parts[2] if settings.quantizer == "uniform" else centres),
                np.asarray(tables),
                np.asarray(flags) if settings.anchor_group else None,
                None if parts[4] is None else np.asarray(parts[4]),
                np.asarray(states).reshape(len(some), lanes),
                *rans.runs_of(words, full, len(some), group),
                _usable(settings, parts),
            )
        )
    return join(settings, some_coded)


@functools.partial(jax.jit, static_argnames=("levels", "centred", "bits", "anchor_group", "fold", "group", "dtype"))
def _decode(
    coded: tuple[jax.Array, ...],
    flags: jax.Array | None,
    refinements: jax.Array | None,
    table_set: tuple[jax.Array, jax.Array, jax.Array],
    *,
    levels: int,
    centred: bool,
    bits: int,
    anchor_group: int,
    fold: int,
    group: int,
    dtype: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Blocks, final states and ends of runs."""
    scales, inverses, centres, tables, states, starts, words = coded
    table, gains, lmcache_steps = table_set
    count, tokens = scales.shape
    channels = centres.shape[1]
    chosen = tables.reshape(count, fold, channels // fold)
    symbols, final, last = rans.decode_traced(states, starts, words, chosen, table, steps=tokens * fold, group=group)
    symbols = restore_traced(
        symbols.reshape(count, tokens, channels),
        jnp.zeros((count, channels), jnp.int32) if centred else centres.astype(jnp.int32),
        flags,
        levels=levels,
        anchor_group=anchor_group,
    )
    if centred:
        gain = gains[tables.astype(jnp.int32)]
        blocks = uniform.dequantize_traced(
            scales, inverses, centres, symbols, refinements, gain, dtype=dtype, bits=bits
        )
    else:
        blocks = lmcache.dequantize_traced(symbols, scales, lmcache_steps)
    return blocks, final, last


def decode(coded: Coded, settings: Settings, dtype: np.dtype[Any]) -> Array:
    """See :func:`lmcache_kit_kernels.blocks.decode`."""
    count, tokens = coded.scales.shape
    channels = coded.centres.shape[1]
    lanes = channels // settings.fold
    group = min(settings.group, lanes)
    blocks = np.empty((count, tokens, channels), dtype)
    for levels, some, own in split(settings, coded):
        table_set = settings.tables[levels]
        starts = rans.starts_of(own.counts)
        arrays = (own.scales, own.inverses, own.centres, own.tables, own.states, starts, rans.room_for(own.words))
        values, final, last = _decode(
            arrays,
            own.flags,
            own.refinements,
            (decoding_table(table_set), table_set.gains, steps(levels)),
            levels=levels,
            centred=settings.quantizer == "uniform",
            bits=settings.refine_bits,
            anchor_group=settings.anchor_group,
            fold=settings.fold,
            group=group,
            dtype=dtype,
        )
        check_ends(own.counts, (np.asarray(last) - starts).astype(np.uint32), np.asarray(final))
        blocks[some] = values
    return blocks


@functools.partial(jax.jit, static_argnames=("refined", "bits"))
def _quantize_uniform(
    blocks: jax.Array, scaling: tuple[jax.Array, ...], logs: jax.Array | None, *, refined: int, bits: int
) -> Parts:
    return uniform.quantize_traced(blocks, scaling[0], logs, scaling[1], refined=refined, bits=bits)


def quantize(blocks: Array, settings: Settings) -> Quantized:
    """See :func:`lmcache_kit_kernels.blocks.quantize`."""
    scaling, logs = _scaling(settings, list(range(len(blocks))), blocks.shape[1])
    if settings.quantizer == "lmcache":
        parts = _quantize_lmcache(jnp.asarray(blocks), jnp.asarray(scaling[0]))
    else:
        parts = _quantize_uniform(blocks, scaling, logs, refined=settings.refined_tokens, bits=settings.refine_bits)
    scales, inverses, centres, symbols = (np.asarray(part) for part in parts[:4])
    refinements = None if parts[4] is None else np.asarray(parts[4])
    return Quantized(scales, inverses, centres, symbols, refinements, _usable(settings, parts))


def dequantize(quantized: Quantized, settings: Settings, dtype: np.dtype[Any], gains: Array | None) -> Array:
    """See :func:`lmcache_kit_kernels.blocks.dequantize`."""
    if settings.quantizer == "lmcache":
        return lmcache.dequantize(quantized.symbols, quantized.scales, np.array(settings.levels, np.int32))
    if gains is None:
        gains = np.full(quantized.centres.shape, UNIT_GAIN, np.uint16)
    return uniform.dequantize(
        quantized.scales,
        quantized.inverses,
        quantized.centres,
        quantized.symbols,
        quantized.refinements,
        gains,
        dtype,
        settings.refine_bits,
    )
