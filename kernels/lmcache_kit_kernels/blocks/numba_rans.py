"""The entropy coder, compiled: group by group, all lanes of a step at once where the machine has vectors.

Every loop over lanes is in two parts. The arithmetic of the states has no dependence between lanes and is vectorised;
moving words to and from the run is a walk along it, lane after lane, without a branch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lmcache_kit_kernels.blocks.numba_compile import compiled, inlined

__all__ = ["decode", "encode"]

Array = np.ndarray[Any, np.dtype[Any]]

_WHOLE = 32  # lanes of a group in the usual case, for which the loops are unrolled
_LOWER_BOUND = 1 << 16


@inlined
def _encode_steps(
    symbols: Array, first: int, lanes: int, steps: int, base: Array, fold: int, width: int,
    entries: Array, reciprocals: Array, state: Array, low: Array, full: Array, run: Array,
) -> int:  # fmt: skip
    """Codes one group; returns the place in ``run`` before its first word."""
    position = steps * width
    for step in range(steps - 1, -1, -1):
        row = first + step * lanes
        column = (step % fold) * width
        for lane in range(width):
            index = base[column + lane] + np.int32(symbols[row + lane])
            entry = entries[index]
            frequency = np.uint32(entry & np.uint32(1023))
            x = state[lane]
            moves = x >= np.uint32(frequency << np.uint32(22))
            low[lane] = np.uint16(x)
            full[lane] = moves
            if moves:
                x = np.uint32(x >> np.uint32(16))
            # floor(x * floor((2**32 - 1) / f) / 2**32) is the quotient or one less, as x < f * 2**22.
            quotient = np.uint32((np.uint64(x) * np.uint64(reciprocals[index])) >> np.uint64(32))
            rest = np.uint32(x - quotient * frequency)
            if rest >= frequency:
                quotient = np.uint32(quotient + np.uint32(1))
            state[lane] = np.uint32(
                x + quotient * np.uint32(np.uint32(1024) - frequency) + np.uint32(entry >> np.uint32(10))
            )
        for lane in range(width - 1, -1, -1):
            run[position] = low[lane]
            position -= np.int64(full[lane])
    return position


@compiled
def encode(
    symbols: Array, tables: Array, firsts: Array, levels: Array, entries: Array, reciprocals: Array,
    fold: int, group: int, states: Array, counts: Array, words: Array,
) -> int:  # fmt: skip
    """Codes blocks into ``words``, which must hold ``symbols.size``; returns how many were written.

    Args:
        symbols: uint8 ``[B, S * N]``, coded symbols.
        tables: uint8 ``[B, C]``.
        firsts: int32 ``[B]``: where the entries of the block's alphabet begin.
        levels: int32 ``[B]``.
        entries: uint32, frequency and the start above it for each (table, symbol) of each alphabet.
        reciprocals: uint32, ``(2**32 - 1) // frequency``.
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
    low = np.empty(group, np.uint16)
    full = np.empty(group, np.uint8)
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
            state[:] = _LOWER_BOUND
            if width == _WHOLE:
                position = _encode_steps(
                    flat, first, lanes, steps, base, fold, _WHOLE, entries, reciprocals, state, low, full, run
                )
            else:
                position = _encode_steps(
                    flat, first, lanes, steps, base, fold, width, entries, reciprocals, state, low, full, run
                )
            count = steps * width - position
            words[written : written + count] = run[position + 1 : position + 1 + count]
            written += count
            counts[block, number] = count
            states[block, first : first + width] = state[:width]
    return written


@inlined
def _decode_steps(
    symbols: Array, first: int, lanes: int, steps: int, base: Array, fold: int, width: int,
    slots: Array, state: Array, words: Array, position: int, end: int,
) -> int:  # fmt: skip
    """Decodes one group; returns where in ``words`` it ended, or -1 if it asked for more than there are."""
    for step in range(steps):
        row = first + step * lanes
        column = (step % fold) * width
        for lane in range(width):
            x = state[lane]
            entry = slots[base[column + lane] + np.int32(x & np.uint32(1023))]
            symbols[row + lane] = np.uint8(entry & np.uint32(127))
            frequency = np.uint32(np.uint32(entry >> np.uint32(7)) & np.uint32(1023))
            state[lane] = np.uint32(frequency * np.uint32(x >> np.uint32(10)) + np.uint32(entry >> np.uint32(17)))
        if position + width <= words.size:
            # Whatever the states are, this step's words lie within the array.
            for lane in range(width):
                x = state[lane]
                filled = np.uint32(np.uint32(x << np.uint32(16)) | np.uint32(words[position]))
                hungry = x < np.uint32(_LOWER_BOUND)
                state[lane] = filled if hungry else x
                position += np.int64(hungry)
        else:
            for lane in range(width):
                x = state[lane]
                if x < np.uint32(_LOWER_BOUND):
                    if position >= end:
                        return -1
                    state[lane] = np.uint32(np.uint32(x << np.uint32(16)) | np.uint32(words[position]))
                    position += 1
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
            end = position + np.int64(counts[block, number])
            if end > words.size:
                return 1
            if width == _WHOLE:
                position = _decode_steps(
                    flat, first, lanes, steps, base, fold, _WHOLE, slots, state, words, position, end
                )
            else:
                position = _decode_steps(
                    flat, first, lanes, steps, base, fold, width, slots, state, words, position, end
                )
            if position != end:
                return 2
            for lane in range(width):
                if state[lane] != _LOWER_BOUND:
                    return 4
    return 0 if position == words.size else 1
