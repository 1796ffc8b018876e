"""Centres, anchors and tables of channels, compiled: from a quantizer's symbols to coded ones and back, in place.

:mod:`lmcache_kit_kernels.statistics` has the definitions. Loops run over the channels of one token, in bytes, so that
they are vectorised.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lmcache_kit_kernels.blocks.numba_compile import compiled, inlined, part

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
        centred: whether to find centres and take them off (quantizer lmcache).
        anchor_group: tokens between anchors; 0 for none.
        alphabets: int32 ``[B]``: row of ``thresholds`` uint32 ``[K, 31]`` and ``covers`` uint8 ``[K, 64]``.
        centres: uint8 ``[B, C]``, filled if ``centred``.
        tables: uint8 ``[B, C]``, filled.
        flags: bool ``[B, C]``, filled if there are anchors.
    """
    count, tokens, channels = symbols.shape
    sums, other_sums = np.empty(channels, np.uint32), np.empty(channels, np.uint32)
    most, other_most = np.empty(channels, np.uint8), np.empty(channels, np.uint8)
    mask, none = np.empty(channels, np.uint8), np.zeros(channels, np.uint8)
    chosen = np.empty(channels, np.uint32)
    no_group: Any = np.int64(0)  # a plain 0 would be a type, and a compilation, of its own
    for block in range(count):
        wrap = np.uint8(levels[block])
        if centred:
            _centre(symbols[block], wrap, sums, centres[block])
            for c in range(channels):
                most[c] = 0  # all tables of these alphabets have all symbols
        else:
            _magnitudes(symbols[block], wrap, no_group, none, sums, most)
        if anchor_group > 0:
            _magnitudes(symbols[block], wrap, anchor_group, none, other_sums, other_most)
            flag = flags[block]
            for c in range(channels):
                flag[c] = other_sums[c] < sums[c]
                mask[c] = 0xFF if flag[c] else 0
                if flag[c]:
                    sums[c] = other_sums[c]
                    most[c] = 0 if centred else other_most[c]
            _to_deltas(symbols[block], wrap, anchor_group, mask)
        _choose(sums, most, tokens, thresholds[alphabets[block]], covers[alphabets[block]], chosen, tables[block])


@inlined
def _less(symbol: Any, less: Any, wrap: Any) -> Any:
    """``(symbol - less) mod wrap`` of uint8 operands below ``wrap``."""
    moved = np.uint8(symbol - less)
    return np.uint8(moved + wrap) if symbol < less else moved


@inlined
def _more(symbol: Any, more: Any, wrap: Any) -> Any:
    """``(symbol + more) mod wrap`` of uint8 operands below ``wrap``."""
    moved = np.uint8(symbol + more)
    return np.uint8(moved - wrap) if moved >= wrap else moved


@part
def _centre(symbols: Array, wrap: Any, sums: Array, centres: Array) -> None:
    """Fill ``centres`` with mean symbols and ``sums`` with distances from them; take the centres off ``symbols``."""
    tokens, channels = symbols.shape
    for c in range(channels):
        sums[c] = 0
    for token in range(tokens):
        line = symbols[token]
        for c in range(channels):
            sums[c] += np.uint32(line[c])
    for c in range(channels):
        # In float64 a quotient of such integers cannot round up to the next one; unlike the integers' it has a vector
        # instruction.
        centres[c] = np.uint8(np.int32(np.float64(2 * np.int64(sums[c]) + tokens) / np.float64(2 * tokens)))
        sums[c] = 0
    for token in range(tokens):
        line = symbols[token]
        for c in range(channels):
            moved = np.uint8(line[c] - centres[c])
            below = line[c] < centres[c]
            sums[c] += np.uint32(np.uint8(centres[c] - line[c]) if below else moved)
            line[c] = np.uint8(moved + wrap) if below else moved


@part
def _magnitudes(symbols: Array, wrap: Any, anchor_group: int, none: Array, sums: Array, most: Array) -> None:
    """Sums and maxima of the magnitudes of signed residues; with an anchor group, of tokens less their anchor.

    ``none`` holds zeros, which is what an anchor has taken off.
    """
    tokens, channels = symbols.shape
    for c in range(channels):
        sums[c] = 0
        most[c] = 0
    for token in range(tokens):
        line = symbols[token]
        place = token % anchor_group if anchor_group > 0 else 0
        anchor = symbols[token - place] if place else none
        for c in range(channels):
            moved = _less(line[c], anchor[c], wrap)
            magnitude = min(moved, np.uint8(wrap - moved))
            most[c] = max(most[c], magnitude)
            sums[c] += np.uint32(magnitude)


@part
def _to_deltas(symbols: Array, wrap: Any, anchor_group: int, mask: Array) -> None:
    tokens, channels = symbols.shape
    for token in range(tokens):
        place = token % anchor_group
        if place:
            line, anchor = symbols[token], symbols[token - place]
            for c in range(channels):
                line[c] = _less(line[c], np.uint8(anchor[c] & mask[c]), wrap)


@part
def _choose(
    sums: Array, most: Array, tokens: int, thresholds: Array, cover: Array, chosen: Array, tables: Array
) -> None:
    channels = sums.size
    for c in range(channels):
        chosen[c] = 0
    for i in range(thresholds.size):
        # floor(1024 * sum / T) >= threshold, without a division per channel.
        least: Any = (np.int64(thresholds[i]) * tokens + (_SPREAD_UNIT - 1)) // _SPREAD_UNIT
        bound = np.uint32(min(least, 0xFFFFFFFF))
        for c in range(channels):
            chosen[c] += np.uint32(1) if sums[c] >= bound else np.uint32(0)
    for c in range(channels):
        tables[c] = max(np.uint8(chosen[c]), cover[most[c]])


@compiled
def restore(symbols: Array, levels: Array, centred: bool, anchor_group: int, centres: Array, flags: Array) -> None:
    """Turn coded symbols back into the quantizer's, in place. Symbols and centres must be below ``levels``."""
    count, tokens, channels = symbols.shape
    mask = np.empty(channels, np.uint8)
    for block in range(count):
        wrap = np.uint8(levels[block])
        if anchor_group > 0:
            for c in range(channels):
                mask[c] = 0xFF if flags[block, c] else 0
            for token in range(tokens):
                place = token % anchor_group
                if place:
                    line, anchor = symbols[block, token], symbols[block, token - place]
                    for c in range(channels):
                        line[c] = _more(line[c], np.uint8(anchor[c] & mask[c]), wrap)
        if centred:
            centre = centres[block]
            for token in range(tokens):
                line = symbols[block, token]
                for c in range(channels):
                    line[c] = _more(line[c], centre[c], wrap)
