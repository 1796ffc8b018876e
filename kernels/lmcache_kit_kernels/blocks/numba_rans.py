"""The entropy coder, compiled: group by group, step by step, lane after lane, without a branch per symbol.

Within a step the lanes depend on each other only through the place in the run, so a processor works on many at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lmcache_kit_kernels.blocks.numba_compile import compiled, inlined

__all__ = ["decode", "encode", "entries_of"]

Array = np.ndarray[Any, np.dtype[Any]]

_LOWER_BOUND = 1 << 16
# An unsigned index spares the test for a negative one, which would count from the array's end.
_at = np.uint64


@inlined
def _encode_steps(
    symbols: Array, first: int, lanes: int, steps: int, base: Array, fold: int, width: int,
    entries: Array, state: Array, run: Array,
) -> int:  # fmt: skip
    """Codes one group; returns the place in ``run`` before its first word."""
    position = steps * width
    for step in range(steps - 1, -1, -1):
        row = first + step * lanes
        column = (step % fold) * width
        for lane in range(width - 1, -1, -1):
            entry = entries[_at(base[_at(column + lane)] + np.int32(symbols[_at(row + lane)]))]
            frequency = np.uint32(entry & np.uint64(1023))
            start = np.uint32((entry >> np.uint64(10)) & np.uint64(1023))
            x = state[_at(lane)]
            moves = x >= np.uint32(frequency << np.uint32(22))
            run[_at(position)] = np.uint16(x)
            position -= int(moves)
            x = np.uint32(x >> np.uint32(16)) if moves else x
            quotient = np.uint32((np.uint64(x) * (entry >> np.uint64(20))) >> np.uint64(42))
            state[_at(lane)] = np.uint32(x + quotient * np.uint32(np.uint32(1024) - frequency) + start)
    return position


def entries_of(frequencies: Array) -> Array:
    """What coding a symbol takes, uint64 in the shape of ``frequencies`` ``[tables, symbols]``: its frequency f in bits
    0-9, the sum of those before it in 10-19, and ``m = ceil(2**42 / f)`` above.

    For every state x < f * 2**22 that a symbol is coded from, ``x // f == x * m >> 42`` in 64 bits: with e = m * f -
    2**42 < f the product exceeds x * 2**42 / f by x * e / f < e * 2**22 < 2**42 / f, as e * f < 2**20. So it neither
    reaches the next multiple of 2**42 nor overflows. A frequency of zero is never coded; its entry is 0.
    """
    wide = frequencies.astype(np.uint64)
    starts = np.cumsum(wide, axis=1, dtype=np.uint64) - wide
    most = np.maximum(wide, np.uint64(1))
    reciprocals = (np.uint64(1 << 42) + most - np.uint64(1)) // most
    entries: Array = np.where(wide > 0, wide | starts << np.uint64(10) | reciprocals << np.uint64(20), np.uint64(0))
    return entries


@compiled
def encode(
    symbols: Array, tables: Array, firsts: Array, levels: Array, entries: Array, fold: int, group: int,
    states: Array, counts: Array, words: Array,
) -> int:  # fmt: skip
    """Codes blocks into ``words``, which must hold ``symbols.size``; returns how many were written.

    Args:
        symbols: uint8 ``[B, S * N]``, coded symbols.
        tables: uint8 ``[B, C]``.
        firsts: int32 ``[B]``: where the entries of the block's alphabet begin.
        levels: int32 ``[B]``.
        entries: uint64, see :func:`entries_of`, of each alphabet.
        fold: steps per token.
        group: lanes per run.
        states: uint32 ``[B, N]``, filled.
        counts: uint32 ``[B, G]``, filled.
        words: uint16, filled from the front.
    """
    lanes = states.shape[1]
    steps = symbols.shape[1] // lanes
    run = np.empty(steps * min(group, lanes) + 1, np.uint16)
    base = np.empty(fold * group, np.int32)
    state = np.empty(group, np.uint32)
    written = 0
    for block in range(symbols.shape[0]):
        flat = symbols[block]
        for number in range(counts.shape[1]):
            first = number * group
            width = min(group, lanes - first)
            for part in range(fold):
                for lane in range(width):
                    table = np.int32(tables[block, part * lanes + first + lane])
                    base[part * width + lane] = firsts[block] + table * levels[block]
            for lane in range(width):
                state[lane] = np.uint32(_LOWER_BOUND)
            position = _encode_steps(flat, first, lanes, steps, base, fold, width, entries, state, run)
            count = steps * width - position
            for index in range(count):
                words[_at(written + index)] = run[_at(position + 1 + index)]
            written += count
            counts[block, number] = count
            for lane in range(width):
                states[block, first + lane] = state[lane]
    return written


@inlined
def _step_back(slots: Array, base: int, x: Any, symbols: Array, place: int) -> Any:
    """Writes the symbol of a state; returns the state before it, yet to be filled up."""
    entry = slots[_at(base + np.int32(x & np.uint32(1023)))]
    symbols[_at(place)] = np.uint8(entry & np.uint32(127))
    frequency = np.uint32(np.uint32(entry >> np.uint32(7)) & np.uint32(1023))
    return np.uint32(frequency * np.uint32(x >> np.uint32(10)) + np.uint32(entry >> np.uint32(17)))


@inlined
def _decode_steps(
    symbols: Array, first: int, lanes: int, steps: int, base: Array, fold: int, width: int,
    slots: Array, state: Array, words: Array, position: int, end: int,
) -> int:  # fmt: skip
    """Decodes one group; returns where in ``words`` it ended, or -1 if it asked for more than there are."""
    for step in range(steps):
        row = first + step * lanes
        column = (step % fold) * width
        if position + width <= words.size:
            # Whatever the states are, this step's words lie within the array.
            for lane in range(width):
                x = _step_back(slots, base[_at(column + lane)], state[_at(lane)], symbols, row + lane)
                filled = np.uint32(np.uint32(x << np.uint32(16)) | np.uint32(words[_at(position)]))
                hungry = x < np.uint32(_LOWER_BOUND)
                state[_at(lane)] = filled if hungry else x
                position += int(hungry)
        else:
            for lane in range(width):
                x = _step_back(slots, base[_at(column + lane)], state[_at(lane)], symbols, row + lane)
                if x < np.uint32(_LOWER_BOUND):
                    if position >= end:
                        return -1
                    x = np.uint32(np.uint32(x << np.uint32(16)) | np.uint32(words[_at(position)]))
                    position += 1
                state[_at(lane)] = x
        if position > end:
            return -1
    return position


@compiled
def decode(
    symbols: Array, tables: Array, firsts: Array, slots: Array, fold: int, group: int,
    states: Array, counts: Array, words: Array,
) -> int:  # fmt: skip
    """Undo :func:`encode`: fills ``symbols`` and returns 0, or says what is wrong.

    ``slots`` holds, for each slot of each table of each alphabet, a symbol and how to step back; ``firsts`` says where
    a block's alphabet begins. ``words`` are those of these blocks; nothing outside any array is touched whatever the
    arrays hold, as long as ``firsts`` and ``tables`` are in range.

    Returns:
        1 if the counts do not add up to the words; 2 if a run ends elsewhere than its count says; 3 if a lane starts
        below the range of states; 4 if one does not end where encoding began.
    """
    lanes = states.shape[1]
    steps = symbols.shape[1] // lanes
    base = np.empty(fold * group, np.int32)
    state = np.empty(group, np.uint32)
    position = 0
    for block in range(symbols.shape[0]):
        flat = symbols[block]
        for number in range(counts.shape[1]):
            first = number * group
            width = min(group, lanes - first)
            for part in range(fold):
                for lane in range(width):
                    table = np.int32(tables[block, part * lanes + first + lane])
                    base[part * width + lane] = firsts[block] + table * np.int32(1024)
            for lane in range(width):
                state[lane] = states[block, first + lane]
                if state[lane] < _LOWER_BOUND:
                    return 3
            end = position + int(counts[block, number])
            if end > words.size:
                return 1
            position = _decode_steps(flat, first, lanes, steps, base, fold, width, slots, state, words, position, end)
            if position != end:
                return 2
            for lane in range(width):
                if state[lane] != _LOWER_BOUND:
                    return 4
    return 0 if position == words.size else 1
