"""numpy implementation, vectorised over lanes: the oracle of the other backends."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmcache_kit_kernels.rans.api import LOWER_BOUND, groups_of
from lmcache_kit_kernels.tables import PROBABILITY_BITS, TableSet, decoding_table

__all__ = ["decode", "encode"]

Array = np.ndarray[Any, np.dtype[Any]]

# Lanes worked on at once: enough to hide the cost of a numpy call, few enough for the second-level cache.
_AT_ONCE = 1 << 14
_WORD = np.uint32(16)
_SLOTS = np.uint32(1 << PROBABILITY_BITS)


def encode(symbols: Array, chosen: Array, tables: TableSet, group: int) -> tuple[Array, Array, Array]:
    """See :func:`lmcache_kit_kernels.rans.encode`; returns states, counts and words."""
    blocks, _, lanes = symbols.shape
    parts = [_encode(symbols[some], chosen[some], tables.frequencies, group) for some in _slices(blocks, lanes)]
    states, counts, words = (np.concatenate(column) for column in zip(*parts, strict=True))
    return states, counts, words


def decode(
    states: Array, counts: Array, words: Array, chosen: Array, tables: TableSet, steps: int, group: int
) -> tuple[Array, Array, Array]:
    """See :func:`lmcache_kit_kernels.rans.decode`; returns symbols, final states and the words each group took."""
    blocks, lanes = states.shape
    ends = np.cumsum(counts, dtype=np.int64).reshape(counts.shape)
    starts = ends - counts
    symbols = np.empty((blocks, steps, lanes), dtype=np.uint8)
    final, consumed = np.empty_like(states), np.empty_like(counts)
    for some in _slices(blocks, lanes):
        symbols[some], final[some], consumed[some] = _decode(
            states[some], starts[some], ends[some], words, chosen[some], decoding_table(tables), steps, group
        )
    return symbols, final, consumed


def _slices(blocks: int, lanes: int) -> list[slice]:
    some = max(1, _AT_ONCE // lanes)
    return [slice(start, start + some) for start in range(0, blocks, some)]


def _pad(array: Array, group: int) -> Array:
    """``array`` with its last axis, the lanes, filled up to whole groups."""
    missing = -array.shape[-1] % group
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)]) if missing else array


def _flat(array: Array) -> Array:
    """``[B, R, N]`` as contiguous ``[R, B * N]``."""
    return np.ascontiguousarray(array.transpose(1, 0, 2)).reshape(array.shape[1], -1)


def _encode(symbols: Array, chosen: Array, frequencies: Array, group: int) -> tuple[Array, Array, Array]:
    blocks, steps, lanes = symbols.shape
    groups = groups_of(lanes, group)
    levels = frequencies.shape[1]
    base = _flat(_pad(chosen, group)).astype(np.intp) * levels
    symbols = _flat(_pad(symbols, group))
    wide = frequencies.astype(np.uint32)
    start = np.cumsum(wide, axis=1, dtype=np.uint32) - wide
    entries = (wide | start << np.uint32(PROBABILITY_BITS)).reshape(-1)

    count = symbols.shape[1]
    state = np.full(count, LOWER_BOUND, dtype=np.uint32)
    index = np.empty(count, dtype=np.intp)
    entry, other, real = np.empty_like(state), np.empty_like(state), np.empty(count, dtype=np.float64)
    words = np.empty((blocks * groups, steps, group), dtype=np.uint16)
    moved = np.empty((blocks * groups, steps, group), dtype=bool)
    full = np.empty(count, dtype=bool)
    for step in reversed(range(steps)):
        np.add(base[step % len(base)], symbols[step], out=index)
        np.take(entries, index, out=entry, mode="clip")
        # A frequency shifted to the top is the bound: the start above it falls out of the 32 bits.
        np.left_shift(entry, np.uint32(32 - PROBABILITY_BITS), out=other)
        np.greater_equal(state, other, out=full)
        np.copyto(words[:, step], state.reshape(-1, group), casting="unsafe")
        moved[:, step] = full.reshape(-1, group)
        np.left_shift(full.view(np.uint8), 4, out=other)
        np.right_shift(state, other, out=state)
        # x -> (x // f) * 1024 + start + x % f, written as x + (x // f) * (1024 - f) + start. A quotient of two integers
        # below 2**32 cannot round across an integer in float64, so truncating it is the integer division.
        np.bitwise_and(entry, _SLOTS - np.uint32(1), out=other)
        np.divide(state, other, out=real)
        np.subtract(_SLOTS, other, out=other)
        entry >>= np.uint32(PROBABILITY_BITS)
        state += entry
        np.copyto(entry, real, casting="unsafe")
        entry *= other
        state += entry
    moved = moved.reshape(blocks, groups, steps, group)
    if lanes % group:
        moved[:, -1, :, lanes % group :] = False
    counts = np.count_nonzero(moved.reshape(blocks, groups, -1), axis=2).astype(np.uint32)
    return state.reshape(blocks, -1)[:, :lanes], counts, words.reshape(moved.shape)[moved]


def _decode(
    states: Array, starts: Array, ends: Array, words: Array, chosen: Array, table: Array, steps: int, group: int
) -> tuple[Array, Array, Array]:
    blocks, lanes = states.shape
    padded = -lanes % group
    state = _pad(states, group).flatten()
    base = _flat(_pad(chosen, group)).astype(np.intp) << PROBABILITY_BITS
    flat_table = table.reshape(-1)
    count = state.size
    symbols = np.empty((steps, count), dtype=np.uint8)
    index = np.empty(count, dtype=np.intp)
    slot, entry = np.empty_like(state), np.empty_like(state)
    low = np.empty(count, dtype=bool)
    edges = np.arange(0, count + 1, group)
    position, end = starts.reshape(-1).copy(), ends.reshape(-1)
    begin = position.copy()
    for step in range(steps):
        np.bitwise_and(state, _SLOTS - np.uint32(1), out=slot)
        np.add(base[step % len(base)], slot, out=index, casting="unsafe")
        np.take(flat_table, index, out=entry, mode="clip")
        np.bitwise_and(entry, np.uint32(127), out=slot)
        np.copyto(symbols[step], slot, casting="unsafe")
        np.right_shift(entry, np.uint32(17), out=slot)
        entry >>= np.uint32(7)
        entry &= np.uint32(1023)
        state >>= np.uint32(PROBABILITY_BITS)
        state *= entry
        state += slot
        np.less(state, np.uint32(LOWER_BOUND), out=low)
        if padded:
            low.reshape(blocks, -1)[:, lanes:] = False
        hungry = np.flatnonzero(low)
        before = np.searchsorted(hungry, edges)
        taken = np.diff(before)
        if np.any(position + taken > end):
            # A damaged run: stop here, with a count that cannot match.
            position = end + 1
            break
        source = np.arange(hungry.size) + np.repeat(position - before[:-1], taken)
        state[hungry] = state[hungry] << _WORD | words[source]
        position += taken
    consumed = (position - begin).astype(np.uint32).reshape(starts.shape)
    unpadded = np.ascontiguousarray(symbols.reshape(steps, blocks, -1)[:, :, :lanes].transpose(1, 0, 2))
    return unpadded, state.reshape(blocks, -1)[:, :lanes], consumed
