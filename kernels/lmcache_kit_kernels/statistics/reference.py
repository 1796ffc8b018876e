"""numpy implementation: the oracle of the other backends."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmcache_kit_kernels.tables import SPREAD_UNIT, TableSet, choose

__all__ = ["fit", "restore"]

Array = np.ndarray[Any, np.dtype[Any]]


def fit(symbols: Array, tables: TableSet, centred: bool, anchor_group: int) -> tuple[Array, Array, Array, Array]:
    """See :func:`lmcache_kit_kernels.statistics.fit`; returns centres, tables, flags and coded symbols."""
    count, tokens, channels = symbols.shape
    levels = tables.levels
    centres = np.zeros((count, channels), dtype=np.uint8)
    if not centred:
        sums = symbols.sum(axis=1, dtype=np.int64)
        centres[:] = (2 * sums + tokens) // (2 * tokens)
    coded = _residue(symbols, centres[:, None], levels)
    if centred:
        magnitudes = _magnitudes(coded, levels)
    else:
        magnitudes = np.maximum(symbols, centres[:, None]) - np.minimum(symbols, centres[:, None])
    sums, largest = magnitudes.sum(axis=1, dtype=np.int64), magnitudes.max(axis=1)
    flags = np.zeros((count, channels), dtype=bool)
    if anchor_group:
        deltas = _deltas(coded, levels, anchor_group)
        delta_magnitudes = _magnitudes(deltas, levels)
        delta_sums = delta_magnitudes.sum(axis=1, dtype=np.int64)
        flags = delta_sums < sums
        coded = np.where(flags[:, None], deltas, coded)
        sums = np.where(flags, delta_sums, sums)
        largest = np.where(flags, delta_magnitudes.max(axis=1), largest)
    spreads = (SPREAD_UNIT * sums // tokens).astype(np.uint32)
    return centres, choose(tables, spreads, largest), flags, coded


def restore(coded: Array, centres: Array, flags: Array | None, levels: int, anchor_group: int) -> Array:
    """See :func:`lmcache_kit_kernels.statistics.restore`."""
    if flags is not None:
        anchors = _anchors(coded, anchor_group)
        at_anchor = (np.arange(coded.shape[1]) % anchor_group == 0)[:, None]
        moves = np.where(flags[:, None] & ~at_anchor, anchors, np.uint8(0))
        coded = _sum(coded, moves, levels)
    return _sum(coded, centres[:, None], levels)


def _residue(symbols: Array, less: Array, levels: int) -> Array:
    """``(symbols - less) mod levels`` of operands below ``levels``."""
    moved = symbols - less  # wraps below zero, where adding the levels wraps back
    moved += (moved >= levels).view(np.uint8) * np.uint8(levels)
    return moved


def _sum(symbols: Array, more: Array, levels: int) -> Array:
    """``(symbols + more) mod levels`` of operands below ``levels``, whose sum a uint8 holds."""
    moved = symbols + more
    moved -= (moved >= levels).view(np.uint8) * np.uint8(levels)
    return moved


def _magnitudes(residues: Array, levels: int) -> Array:
    magnitudes: Array = np.minimum(residues, np.uint8(levels) - residues)
    return magnitudes


def _anchors(coded: Array, group: int) -> Array:
    """For every token the symbols of its anchor, which are the same in both forms."""
    tokens = np.arange(coded.shape[1])
    return coded[:, tokens - tokens % group]


def _deltas(coded: Array, levels: int, group: int) -> Array:
    deltas = _residue(coded, _anchors(coded, group), levels)
    deltas[:, ::group] = coded[:, ::group]
    return deltas
