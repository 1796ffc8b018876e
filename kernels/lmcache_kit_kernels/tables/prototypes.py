"""The built-in tables: zero-centred normal distributions of growing width, made of integers alone.

They are part of the bitstream: both sides build them, none is stored. So the construction uses exact arithmetic only
(decimal exponentials are correctly rounded by specification), and a test pins their digest.

Every frequency of the alphabets of 15 and 31 is at least 1, so any symbol can be coded at no more than 10 bits under
any table. A table of the alphabet of 127 leaves out what lies beyond five deviations: 127 ones out of 1024 would cost
a narrow channel more than its symbols do.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from decimal import ROUND_CEILING, Context, Decimal
from types import MappingProxyType

import numpy as np

from lmcache_kit_kernels.tables.table_set import (
    ALPHABETS,
    NUM_TABLES,
    PROBABILITY_BITS,
    SPREAD_UNIT,
    UNIT_GAIN,
    TableSet,
)

__all__ = ["builtin_tables", "builtin_tables_by_levels"]

_TOTAL = 1 << PROBABILITY_BITS
_CONTEXT = Context(prec=40)
_multiply, _divide, _exp = _CONTEXT.multiply, _CONTEXT.divide, _CONTEXT.exp
# Standard deviation, in symbols, of table 0, below which no symbol but the centre would get more than its least
# frequency; and of the last table: half the alphabet where it is small.
_NARROWEST = Decimal("0.27")
_WIDEST = {15: Decimal("7.5"), 31: Decimal("15.5"), 127: Decimal(32)}
_REACH_DEVIATIONS, _REACH_MORE, _LEAST_REACH = 5, 2, 6
_ROOT_TWO_PI = Decimal("2.506628274631000502415765284811045253007")
# Where the sums over a normal x end: what is left out is below 1e-30.
_TAIL_ENDS, _TERM_ENDS, _BORDERS = 11, Decimal("1e-36"), 30


def _sum(terms: list[Decimal]) -> Decimal:
    return functools.reduce(_CONTEXT.add, terms)


def _deviation(table: int, levels: int) -> Decimal:
    ratio = _divide(_WIDEST[levels], _NARROWEST)
    step = _divide(_multiply(_CONTEXT.ln(ratio), Decimal(table)), Decimal(NUM_TABLES - 1))
    return _multiply(_NARROWEST, _exp(step))


def _reach(deviation: Decimal, levels: int) -> int:
    """Largest magnitude that a table has a symbol for."""
    middle = levels // 2
    if levels != 127:
        return middle
    far = _multiply(Decimal(_REACH_DEVIATIONS), deviation).to_integral_value(rounding=ROUND_CEILING)
    return min(middle, max(_LEAST_REACH, int(far) + _REACH_MORE))


def _density(distance: Decimal, deviation: Decimal) -> Decimal:
    """``exp(-distance**2 / (2 * deviation**2))``."""
    double_variance = _multiply(Decimal(2), _multiply(deviation, deviation))
    return _exp(_divide(_multiply(distance, distance).copy_negate(), double_variance))


def _apportion(weights: list[Decimal]) -> list[int]:
    """Integers of at least 1 that sum to ``_TOTAL``: 1 each, the rest by largest remainder, ties to the lower index."""
    free = _TOTAL - len(weights)
    total = _sum(weights)
    shares = [_divide(_multiply(Decimal(free), weight), total) for weight in weights]
    parts = [int(share) for share in shares]
    by_remainder = sorted(range(len(parts)), key=lambda i: (_CONTEXT.subtract(Decimal(parts[i]), shares[i]), i))
    for i in by_remainder[: free - sum(parts)]:
        parts[i] += 1
    return [part + 1 for part in parts]


def _row(deviation: Decimal, levels: int) -> tuple[list[int], Decimal]:
    """Frequencies of one table, and the mean magnitude under the exact weights they approximate."""
    reach = _reach(deviation, levels)
    symbols = [u for u in range(levels) if min(u, levels - u) <= reach]
    distances = [Decimal(min(u, levels - u)) for u in symbols]
    weights = [_density(distance, deviation) for distance in distances]
    row = [0] * levels
    for u, frequency in zip(symbols, _apportion(weights), strict=True):
        row[u] = frequency
    moment = _sum([_multiply(distance, weight) for distance, weight in zip(distances, weights, strict=True)])
    return row, _divide(moment, _sum(weights))


def _tail(z: Decimal) -> Decimal:
    """``P(x > z)`` of a standard normal x, z > 0, by the series of its odd powers; zero where it is below 1e-30."""
    if z > _TAIL_ENDS:
        return Decimal(0)
    term = total = z
    k = 1
    while term > _TERM_ENDS:
        k += 2
        term = _divide(_multiply(term, _multiply(z, z)), Decimal(k))
        total = _CONTEXT.add(total, term)
    inner = _divide(_multiply(_density(z, Decimal(1)), total), _ROOT_TWO_PI)
    return _CONTEXT.subtract(Decimal("0.5"), inner)


def _gain(deviation: Decimal) -> int:
    """``256 * E[x*q] / E[q*q]``, rounded, for a normal x and q = x rounded to an integer: what to scale q by so that it
    is the best linear estimate of x.

    Both moments are sums over the borders h = 1/2, 3/2, ... between the cells: by parts, E[x*q] is twice the sum of
    ``deviation * phi(h / deviation)``, and E[q*q] twice the sum of ``2 * h * P(x > h)``. From two deviations on they
    are the variance, and the variance plus 1/12, to thirty digits.
    """
    if deviation >= 2:
        cross = _multiply(deviation, deviation)
        square = _CONTEXT.add(cross, _divide(Decimal(1), Decimal(12)))
    else:
        borders = [_divide(Decimal(2 * k + 1), Decimal(2)) for k in range(_BORDERS)]
        cross = _divide(_multiply(deviation, _sum([_density(h, deviation) for h in borders])), _ROOT_TWO_PI)
        square = _sum([_multiply(_multiply(Decimal(2), h), _tail(_divide(h, deviation))) for h in borders])
    return min(
        UNIT_GAIN, int(_divide(_multiply(Decimal(UNIT_GAIN), cross), square).to_integral_value(context=_CONTEXT))
    )


def _between(lower: Decimal, upper: Decimal) -> int:
    """Geometric mean of two mean magnitudes, as a spread."""
    return int(
        _multiply(Decimal(SPREAD_UNIT), _CONTEXT.sqrt(_multiply(lower, upper))).to_integral_value(context=_CONTEXT)
    )


@functools.cache
def builtin_tables(levels: int) -> TableSet:
    """The built-in set for 15, 31 or 127 levels. Raises ValueError for any other number."""
    if levels not in ALPHABETS:
        raise ValueError(f"tables are for {', '.join(map(str, ALPHABETS))} levels, not {levels}")
    middle = levels // 2
    deviations = [_deviation(table, levels) for table in range(NUM_TABLES)]
    deviations[-1] = _WIDEST[levels]
    rows, magnitudes = zip(*(_row(deviation, levels) for deviation in deviations), strict=True)
    thresholds = [_between(*pair) for pair in itertools.pairwise(magnitudes)]
    reaches = [_reach(deviation, levels) for deviation in deviations]
    cover = [next(i for i, reach in enumerate(reaches) if reach >= a) for a in range(middle + 1)]
    uniform = levels == ALPHABETS[-1]
    return TableSet(
        levels,
        np.array(rows, np.uint16),
        np.maximum.accumulate(np.array(thresholds, np.uint32)),
        np.array(cover, np.uint8),
        np.array([_gain(deviation) if uniform else UNIT_GAIN for deviation in deviations], np.uint16),
    )


@functools.cache
def builtin_tables_by_levels() -> Mapping[int, TableSet]:
    """The built-in sets of all alphabets."""
    return MappingProxyType({levels: builtin_tables(levels) for levels in ALPHABETS})
