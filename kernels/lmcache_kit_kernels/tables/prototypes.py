"""The prototype distributions: zero-centred, of growing width, made of integers alone.

They are part of the bitstream: both sides build them, none is stored. So the construction uses exact arithmetic only
(decimal exponentials are correctly rounded by specification), and a test pins their digest.

A table gives each centred symbol ``u = (symbol - centre) mod levels`` a frequency out of ``2**10``: ``u = 0`` is the
centre, ``1, 2, ...`` lie above and ``levels - 1, levels - 2, ...`` below it. Every frequency is at least 1, so any
symbol can be coded at no more than 10 bits under any table, and at most 1023, as the coder's arithmetic needs.
"""

from __future__ import annotations

import functools
from decimal import Context, Decimal
from typing import Any

import numpy as np

__all__ = ["COST_BITS", "NUM_TABLES", "PROBABILITY_BITS", "decoding_table", "frequencies", "symbol_costs"]

Array = np.ndarray[Any, np.dtype[Any]]

NUM_TABLES = 32
PROBABILITY_BITS = 10
COST_BITS = 5
"""Costs are in units of ``2**-5`` bit: the sum over 2**15 symbols of one channel is exact even in float32."""

_TOTAL = 1 << PROBABILITY_BITS
_CONTEXT = Context(prec=40)
# Standard deviation, in symbols, of table 0, below which no symbol but the centre would get more than its least
# frequency; and of the last table, as a share of the number of levels.
_NARROWEST = Decimal("0.27")
_WIDEST_SHARE = Decimal("0.5")


def _deviation(table: int, levels: int) -> Decimal:
    ratio = _CONTEXT.divide(_CONTEXT.multiply(_WIDEST_SHARE, Decimal(levels)), _NARROWEST)
    step = _CONTEXT.divide(_CONTEXT.multiply(_CONTEXT.ln(ratio), Decimal(table)), Decimal(NUM_TABLES - 1))
    return _CONTEXT.multiply(_NARROWEST, _CONTEXT.exp(step))


def _weights(table: int, levels: int) -> list[Decimal]:
    """Values of a normal density at the distances of the centred symbols from 0."""
    deviation = _deviation(table, levels)
    double_variance = _CONTEXT.multiply(Decimal(2), _CONTEXT.multiply(deviation, deviation))
    distances = [min(u, levels - u) for u in range(levels)]
    return [_CONTEXT.exp(_CONTEXT.divide(Decimal(-d * d), double_variance)) for d in distances]


def _apportion(weights: list[Decimal]) -> list[int]:
    """Integers of at least 1 that sum to ``_TOTAL``: 1 each, the rest by largest remainder, ties to the lower index."""
    free = _TOTAL - len(weights)
    total = functools.reduce(_CONTEXT.add, weights)
    shares = [_CONTEXT.divide(_CONTEXT.multiply(Decimal(free), weight), total) for weight in weights]
    parts = [int(share) for share in shares]
    by_remainder = sorted(range(len(parts)), key=lambda i: (parts[i] - shares[i], i))
    for i in by_remainder[: free - sum(parts)]:
        parts[i] += 1
    return [part + 1 for part in parts]


@functools.cache
def frequencies(levels: int) -> Array:
    """uint16 ``[32, levels]``; each row sums to 1024."""
    rows = [_apportion(_weights(table, levels)) for table in range(NUM_TABLES)]
    return _frozen(np.array(rows, dtype=np.uint16))


@functools.cache
def symbol_costs(levels: int) -> Array:
    """int32 ``[32, levels]``: what a centred symbol costs under each table, in 1/32 bit, rounded."""
    unit = Decimal(1 << COST_BITS)
    ln2 = _CONTEXT.ln(Decimal(2))
    cost = {
        f: int(
            _CONTEXT.divide(
                _CONTEXT.multiply(unit, _CONTEXT.ln(_CONTEXT.divide(Decimal(_TOTAL), Decimal(f)))), ln2
            ).to_integral_value()
        )
        for f in {int(f) for f in frequencies(levels).flat}
    }
    return _frozen(np.vectorize(cost.__getitem__, otypes=[np.int32])(frequencies(levels)))


@functools.cache
def decoding_table(levels: int) -> Array:
    """uint32 ``[32, 1024]``: for each slot of each table its symbol and how to step back.

    Bits 0-6 hold the centred symbol, 7-16 its frequency, 17-26 the slot's place within the symbol's range.
    """
    rows = []
    for row in frequencies(levels).astype(np.uint32):
        symbol = np.repeat(np.arange(levels, dtype=np.uint32), row)
        start = np.cumsum(row, dtype=np.uint32) - row
        place = np.arange(_TOTAL, dtype=np.uint32) - start[symbol]
        rows.append(symbol | row[symbol] << np.uint32(7) | place << np.uint32(17))
    return _frozen(np.stack(rows))


def _frozen(array: Array) -> Array:
    array.setflags(write=False)
    return array
