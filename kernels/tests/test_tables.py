"""Prototype tables and the choice among them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmcache_kit_kernels import backends_of, tables

LEVELS = [15, 31, 127]


@pytest.mark.parametrize("levels", LEVELS)
def test_every_symbol_can_be_coded_under_every_table(levels):
    frequencies = tables.frequencies(levels).astype(int)
    assert frequencies.shape == (tables.NUM_TABLES, levels)
    assert np.all(frequencies.sum(axis=1) == 1024)
    assert frequencies.min() >= 1
    assert frequencies.max() <= 1023


@pytest.mark.parametrize("levels", LEVELS)
def test_tables_are_centred_and_grow_in_width(levels):
    frequencies = tables.frequencies(levels).astype(int)
    upper, lower = frequencies[:, 1 : levels // 2 + 1], frequencies[:, : levels // 2 : -1]
    # Largest remainders may give the upper of two equal neighbours one more.
    assert np.all((upper - lower >= 0) & (upper - lower <= 1))
    assert np.all(np.diff(frequencies[:, 0]) < 0), "two tables are the same"
    assert np.all(np.diff(upper, axis=1) <= 0)


# The tables are part of the bitstream: a payload written by one release must decode in every later one.
@pytest.mark.parametrize(
    ("levels", "digest"),
    [(15, "52388cb66a568b3d"), (31, "edee7fc8b4f96cb4")],
)
def test_tables_never_change(levels, digest):
    data = tables.frequencies(levels).astype("<u2").tobytes() + tables.symbol_costs(levels).astype("<i4").tobytes()
    assert hashlib.sha256(data).hexdigest()[:16] == digest


@pytest.mark.parametrize("levels", LEVELS)
def test_costs_are_those_of_the_frequencies(levels):
    exact = 32 * np.log2(1024 / tables.frequencies(levels).astype(float))
    assert np.abs(tables.symbol_costs(levels) - exact).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("levels", LEVELS)
def test_decoding_table_inverts_the_frequencies(levels):
    for row, entries in zip(tables.frequencies(levels).astype(int), tables.decoding_table(levels), strict=True):
        slots = [(symbol, int(f), place) for symbol, f in enumerate(row) for place in range(f)]
        assert [(int(e & 127), int(e >> 7 & 1023), int(e >> 17)) for e in entries] == slots


def slow_fit(channel, levels):
    """The definition, symbol by symbol."""
    centre = int(np.floor(sum(map(int, channel)) / len(channel) + 0.5))
    costs = tables.symbol_costs(levels)
    totals = [sum(int(costs[table, (int(s) - centre) % levels]) for s in channel) for table in range(len(costs))]
    return centre, totals.index(min(totals))


# XLA compiles for each pair of levels and tokens, so there are few.
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.sampled_from([(15, 1), (15, 34), (31, 33)]))
def test_fit_on_every_backend_is_the_definition(seed, size):
    levels, tokens = size
    rng = np.random.default_rng(seed)
    spread = rng.uniform(0, levels, (2, 1, 3))
    symbols = np.clip(np.rint(rng.normal(rng.uniform(0, levels, (2, 1, 3)), spread, (2, tokens, 3))), 0, levels - 1)
    symbols = symbols.astype(np.uint8)
    for backend in backends_of("tables"):
        centres, chosen = tables.fit(symbols, levels, backend=backend)
        for block in range(2):
            for channel in range(3):
                expected = slow_fit(symbols[block, :, channel], levels)
                assert (centres[block, channel], chosen[block, channel]) == expected, backend


@given(data=st.data(), levels=st.sampled_from(LEVELS))
@settings(deadline=None)
def test_centring_is_undone(data, levels):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    symbols = rng.integers(0, levels, (2, 5, 4)).astype(np.uint8)
    centres = rng.integers(0, levels, (2, 4)).astype(np.uint8)
    moved = tables.centre(symbols, centres, levels)
    assert np.array_equal(moved, (symbols.astype(int) - centres[:, None]) % levels)
    assert np.array_equal(tables.uncentre(moved, centres, levels), symbols)


def test_fit_refuses_what_would_not_be_exact():
    with pytest.raises(ValueError, match="32768 tokens"):
        tables.fit(np.zeros((1, tables.MAX_TOKENS + 1, 1), np.uint8), 31)
    with pytest.raises(ValueError, match="uint8"):
        tables.fit(np.zeros((1, 3, 1), np.int32), 31)
