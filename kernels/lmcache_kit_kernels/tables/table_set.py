"""A set of 32 frequency tables for one alphabet, with the rules that choose a table for a channel."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "ALPHABETS",
    "FINGERPRINT_BYTES",
    "NUM_TABLES",
    "PROBABILITY_BITS",
    "SPREAD_UNIT",
    "UNIT_GAIN",
    "TableSet",
    "choose",
    "decoding_table",
]

Array = np.ndarray[Any, np.dtype[Any]]

ALPHABETS = (15, 31, 127)
NUM_TABLES = 32
PROBABILITY_BITS = 10
SPREAD_UNIT = 1024
"""Spreads and thresholds are mean magnitudes in units of 1/1024 symbol."""
UNIT_GAIN = 256
"""The gain that changes nothing."""
FINGERPRINT_BYTES = 16

_TOTAL = 1 << PROBABILITY_BITS


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class TableSet:
    """Tables over the coded symbols ``u = d mod levels`` of signed distances ``d``: ``u = 0`` is the centre, ``1, 2,
    ...`` lie above it and ``levels - 1, levels - 2, ...`` below.

    Args:
        levels: size of the alphabet: 15, 31 or 127.
        frequencies: uint16 ``[32, levels]``; each row sums to 1024, no entry is above 1023. In the alphabets of 15
            and 31 every entry is at least 1. In that of 127 a table may leave out the far symbols.
        thresholds: uint32 ``[31]``, ascending: a channel of spread s may use table ``#{i: s >= thresholds[i]}``.
        cover: uint8 ``[levels // 2 + 1]``: the first table that has every symbol of magnitude up to a, and so have
            all tables after it.
        gains: uint16 ``[32]`` of at most 256: how much of a symbol's distance the uniform quantizer gives back, in
            1/256.
        fingerprint: 16 bytes that name the profile these tables come from; zeros for the built-in ones.

    Raises ValueError if the arrays do not fit together. The arrays are copied and frozen.
    """

    levels: int
    frequencies: Array
    thresholds: Array
    cover: Array
    gains: Array
    fingerprint: bytes = bytes(FINGERPRINT_BYTES)

    def __post_init__(self) -> None:
        shapes = {
            "frequencies": (np.uint16, (NUM_TABLES, self.levels)),
            "thresholds": (np.uint32, (NUM_TABLES - 1,)),
            "cover": (np.uint8, (self.levels // 2 + 1,)),
            "gains": (np.uint16, (NUM_TABLES,)),
        }
        if self.levels not in ALPHABETS:
            raise ValueError(f"tables are for {', '.join(map(str, ALPHABETS))} levels, not {self.levels}")
        for name, (dtype, shape) in shapes.items():
            given = np.asarray(getattr(self, name))
            if given.shape != shape or given.dtype.kind not in "iu" or np.any(given.astype(dtype) != given):
                raise ValueError(f"{name} must be {np.dtype(dtype)} {list(shape)}, got {given.dtype} {given.shape}")
            frozen = given.astype(dtype)  # copies
            frozen.setflags(write=False)
            object.__setattr__(self, name, frozen)
        problem = self._problem()
        if problem:
            raise ValueError(problem)

    def _problem(self) -> str | None:
        if len(self.fingerprint) != FINGERPRINT_BYTES:
            return f"a fingerprint has {FINGERPRINT_BYTES} bytes, not {len(self.fingerprint)}"
        if np.any(self.frequencies.sum(axis=1, dtype=np.int64) != _TOTAL) or int(self.frequencies.max()) >= _TOTAL:
            return f"each table's frequencies must sum to {_TOTAL} and none may take all of it"
        if np.any(np.diff(self.thresholds.astype(np.int64)) < 0):
            return "thresholds must ascend"
        if int(self.gains.max()) > UNIT_GAIN:
            return f"a gain is at most {UNIT_GAIN}"
        if self.levels != ALPHABETS[-1] and (int(self.frequencies.min()) < 1 or self.cover.any()):
            return f"every table of {self.levels} levels must have every symbol, and its cover be zero"
        present = self.frequencies > 0
        for magnitude, first in enumerate(self.cover):
            if first >= NUM_TABLES:
                return f"no table covers magnitude {magnitude}"
            reach = np.arange(-magnitude, magnitude + 1) % self.levels
            if not present[first:, reach].all():
                return f"tables from {first} on must have every symbol of magnitude up to {magnitude}"
        return None


def choose(tables: TableSet, spreads: Array, largest: Array) -> Array:
    """Table of each channel, uint8 in the shape of ``spreads``.

    Args:
        spreads: uint32, mean magnitude of the channel's signed symbols in 1/1024, rounded down.
        largest: integers, the largest magnitude; beyond ``levels // 2`` it counts as that.
    """
    by_spread = np.searchsorted(tables.thresholds, spreads, side="right")
    by_reach = tables.cover[np.minimum(largest, tables.levels // 2)]
    chosen: Array = np.maximum(by_spread, by_reach).astype(np.uint8)
    return chosen


@functools.lru_cache(maxsize=16)
def decoding_table(tables: TableSet) -> Array:
    """uint32 ``[32, 1024]``: for each slot of each table its symbol and how to step back.

    Bits 0-6 hold the coded symbol, 7-16 its frequency, 17-26 the slot's place within the symbol's range.
    """
    rows = []
    for row in tables.frequencies.astype(np.uint32):
        symbol = np.repeat(np.arange(tables.levels, dtype=np.uint32), row)
        start = np.cumsum(row, dtype=np.uint32) - row
        place = np.arange(_TOTAL, dtype=np.uint32) - start[symbol]
        rows.append(symbol | row[symbol] << np.uint32(7) | place << np.uint32(17))
    table = np.stack(rows)
    table.setflags(write=False)
    return table
