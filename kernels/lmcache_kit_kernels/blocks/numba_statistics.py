"""Centres, anchors and tables of channels, compiled: from a quantizer's symbols to coded ones and back, in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmcache_kit_kernels.blocks.numba_compile import compiled, inlined

__all__ = ["describe", "restore"]

Array = np.ndarray[Any, np.dtype[Any]]

_SPREAD_UNIT = 1024


@compiled
def describe(
    symbols: Array, levels: Array, centred: bool, anchor_group: int, alphabets: Array, thresholds: Array,
    covers: Array, centres: Array, tables: Array, flags: Array,
) -> None:  # fmt: skip
    """Turn symbols into coded symbols, and say which table fits each channel.

    Args:
        symbols: uint8 ``[B, T, C]``, changed in place.
        levels: int32 ``[B]``.
        centred: whether channels have centres (quantizer lmcache).
        anchor_group: tokens between anchors; 0 for none.
        alphabets: int32 ``[B]``: row of ``thresholds`` uint32 ``[K, 31]`` and ``covers`` uint8 ``[K, 64]``.
        centres: uint8 ``[B, C]``, filled if ``centred``.
        tables: uint8 ``[B, C]``, filled.
        flags: bool ``[B, C]``, filled if there are anchors.
    """
    count, tokens, channels = symbols.shape
    sums, other_sums = np.empty(channels, np.uint32), np.empty(channels, np.uint32)
    most, other_most = np.empty(channels, np.uint8), np.empty(channels, np.uint8)
    for block in range(count):
        size = np.int32(levels[block])
        if centred:
            _centre(symbols[block], size, sums, centres[block])
            most[:] = 0
        else:
            _magnitudes(symbols[block], size, sums, most)
        if anchor_group > 0:
            _delta_magnitudes(symbols[block], size, anchor_group, other_sums, other_most)
            flag = flags[block]
            for c in range(channels):
                flag[c] = other_sums[c] < sums[c]
                if flag[c]:
                    sums[c] = other_sums[c]
                    most[c] = 0 if centred else other_most[c]
            _to_deltas(symbols[block], size, anchor_group, flag)
        _choose(sums, most, tokens, thresholds[alphabets[block]], covers[alphabets[block]], tables[block])


@inlined
def _centre(symbols: Array, size: int, sums: Array, centres: Array) -> None:
    """Fill ``centres`` with mean symbols and ``sums`` with distances from them; take the centres off ``symbols``."""
    tokens, channels = symbols.shape
    sums[:] = 0
    for token in range(tokens):
        line = symbols[token]
        for c in range(channels):
            sums[c] += np.uint32(line[c])
    for c in range(channels):
        centres[c] = np.uint8((2 * np.int64(sums[c]) + tokens) // (2 * tokens))
    sums[:] = 0
    wrap = np.uint8(size)
    for token in range(tokens):
        line = symbols[token]
        for c in range(channels):
            moved = np.uint8(line[c] - centres[c])
            below = line[c] < centres[c]
            sums[c] += np.uint32(np.uint8(centres[c] - line[c]) if below else moved)
            line[c] = np.uint8(moved + wrap) if below else moved


@inlined
def _magnitudes(symbols: Array, size: int, sums: Array, most: Array) -> None:
    """Sums and maxima of the signed residues' magnitudes."""
    tokens, channels = symbols.shape
    sums[:] = 0
    most[:] = 0
    wrap = np.uint8(size)
    for token in range(tokens):
        line = symbols[token]
        for c in range(channels):
            magnitude = min(line[c], np.uint8(wrap - line[c]))
            most[c] = max(most[c], magnitude)
            sums[c] += np.uint32(magnitude)


@inlined
def _delta_magnitudes(symbols: Array, size: int, anchor_group: int, sums: Array, most: Array) -> None:
    """As :func:`_magnitudes`, of the differences from each group's first token."""
    tokens, channels = symbols.shape
    sums[:] = 0
    most[:] = 0
    wrap = np.uint8(size)
    for token in range(tokens):
        line = symbols[token]
        anchor = symbols[token - token % anchor_group]
        first = token % anchor_group == 0
        for c in range(channels):
            reference = np.uint8(0) if first else anchor[c]
            moved = np.uint8(line[c] - reference)
            moved = np.uint8(moved + wrap) if line[c] < reference else moved
            magnitude = min(moved, np.uint8(wrap - moved))
            most[c] = max(most[c], magnitude)
            sums[c] += np.uint32(magnitude)


@inlined
def _to_deltas(symbols: Array, size: int, anchor_group: int, flags: Array) -> None:
    tokens, channels = symbols.shape
    wrap = np.uint8(size)
    for token in range(tokens):
        if token % anchor_group == 0:
            continue
        line = symbols[token]
        anchor = symbols[token - token % anchor_group]
        for c in range(channels):
            reference = anchor[c] if flags[c] else np.uint8(0)
            moved = np.uint8(line[c] - reference)
            line[c] = np.uint8(moved + wrap) if line[c] < reference else moved


@inlined
def _choose(sums: Array, most: Array, tokens: int, thresholds: Array, cover: Array, tables: Array) -> None:
    channels = sums.size
    for c in range(channels):
        sums[c] = np.uint32(np.int64(sums[c]) * _SPREAD_UNIT // tokens)
        tables[c] = 0
    for i in range(thresholds.size):
        threshold = thresholds[i]
        for c in range(channels):
            tables[c] += np.uint8(sums[c] >= threshold)
    for c in range(channels):
        tables[c] = max(tables[c], cover[most[c]])


@compiled
def restore(symbols: Array, levels: Array, centred: bool, anchor_group: int, centres: Array, flags: Array) -> None:
    """Turn coded symbols back into the quantizer's, in place. Symbols and centres must be below ``levels``."""
    count, tokens, channels = symbols.shape
    for block in range(count):
        wrap = np.uint32(levels[block])
        if anchor_group > 0:
            flag = flags[block]
            for token in range(tokens):
                if token % anchor_group == 0:
                    continue
                line = symbols[block, token]
                anchor = symbols[block, token - token % anchor_group]
                for c in range(channels):
                    moved = np.uint32(line[c]) + (np.uint32(anchor[c]) if flag[c] else np.uint32(0))
                    line[c] = np.uint8(moved - wrap if moved >= wrap else moved)
        if centred:
            centre = centres[block]
            for token in range(tokens):
                line = symbols[block, token]
                for c in range(channels):
                    moved = np.uint32(line[c]) + np.uint32(centre[c])
                    line[c] = np.uint8(moved - wrap if moved >= wrap else moved)
