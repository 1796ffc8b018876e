"""The coder: round trips, one bitstream on every backend, sizes, and streams that were tampered with."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmcache_kit_kernels import CorruptStreamError, rans
from lmcache_kit_kernels.tables import NUM_TABLES, builtin_tables

OPERATION = "rans"


def make(seed, blocks, steps, lanes, levels, kinds=1):
    """Symbols drawn from the tables that will code them, with some that the tables find improbable."""
    rng = np.random.default_rng(seed)
    frequencies = builtin_tables(levels).frequencies
    chosen = rng.integers(0, NUM_TABLES, (blocks, kinds, lanes)).astype(np.uint8)
    share = frequencies[chosen] / 1024
    draws = rng.random((blocks, steps, lanes, 1))
    edges = np.cumsum(share, axis=3)[:, np.arange(steps) % kinds]
    symbols = (draws >= edges).sum(axis=3).clip(0, levels - 1)
    wild = np.where(rng.random(symbols.shape) < 0.05, rng.integers(0, levels, symbols.shape), symbols)
    # Wide alphabets have tables that leave out far symbols.
    codable = frequencies[chosen[:, np.arange(steps) % kinds], wild] > 0
    return np.where(codable, wild, 0).astype(np.uint8), chosen


def slow_encode(symbols, chosen, levels, group):
    """One lane at a time in Python integers: states and, per group, the words in decoding order."""
    _, steps, lanes = symbols.shape
    frequencies = builtin_tables(levels).frequencies.astype(int)
    states, runs = [], []
    for block, table in zip(symbols, chosen, strict=True):
        emitted = [[None] * lanes for _ in range(steps)]
        ends = []
        for lane in range(lanes):
            x = 1 << 16
            for step in reversed(range(steps)):
                row = frequencies[table[step % len(table), lane]]
                symbol = int(block[step, lane])
                f, start = int(row[symbol]), int(row[:symbol].sum())
                if x >= f << 22:
                    emitted[step][lane] = x & 0xFFFF
                    x >>= 16
                x = (x // f << 10) + start + x % f
            ends.append(x)
        states.append(ends)
        runs.append(
            [
                [word for row in emitted for word in row[first : first + group] if word is not None]
                for first in range(0, lanes, group)
            ]
        )
    return states, runs


def check_against_the_definition(backend, symbols, chosen, levels, group):
    states, runs = slow_encode(symbols, chosen, levels, group)
    streams = rans.encode(symbols, chosen, builtin_tables(levels), group=group, backend=backend)
    assert streams.states.tolist() == states
    assert streams.counts.tolist() == [[len(run) for run in block] for block in runs]
    assert streams.words.tolist() == [word for block in runs for run in block for word in run]
    assert (streams.states.dtype, streams.counts.dtype, streams.words.dtype) == (np.uint32, np.uint32, np.uint16)
    again = rans.decode(streams, chosen, builtin_tables(levels), symbols.shape[1], group=group, backend=backend)
    assert np.array_equal(again, symbols)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)),
    levels=st.sampled_from([15, 31, 127]),
    kinds=st.integers(1, 3),
    group=st.integers(1, 50),
)
def test_the_reference_writes_what_the_definition_says_and_reads_it_back(seed, shape, levels, kinds, group):
    check_against_the_definition("numpy", *make(seed, *shape, levels, kinds), levels, group)


# A few fixed shapes: each is a compilation.
@pytest.mark.parametrize(
    ("shape", "levels", "kinds", "group"),
    [((1, 1, 1), 31, 1, 32), ((2, 40, 64), 31, 1, 32), ((3, 33, 37), 15, 3, 8), ((1, 17, 5), 127, 2, 100)],
)
def test_every_backend_writes_what_the_definition_says_and_reads_it_back(backend, shape, levels, kinds, group):
    for seed in range(3):
        check_against_the_definition(backend, *make(seed, *shape, levels, kinds), levels, group)


def test_more_lanes_than_are_worked_on_at_once():
    symbols, chosen = make(3, 5, 6, 9000, 31)
    streams = rans.encode(symbols, chosen, builtin_tables(31))
    assert np.array_equal(rans.decode(streams, chosen, builtin_tables(31), 6), symbols)


def test_decoding_leaves_its_input_alone():
    symbols, chosen = make(4, 1, 50, 32, 15)
    streams = rans.encode(symbols, chosen, builtin_tables(15))
    copies = [array.copy() for array in (streams.states, streams.counts, streams.words)]
    rans.decode(streams, chosen, builtin_tables(15), 50)
    for before, after in zip(copies, (streams.states, streams.counts, streams.words), strict=True):
        assert np.array_equal(before, after)


@pytest.mark.parametrize("steps", [512, 2048])
def test_size_is_close_to_what_the_tables_promise(steps):
    symbols, chosen = make(7, 1, steps, 64, 31)
    streams = rans.encode(symbols, chosen, builtin_tables(31))
    ideal = -np.log2(builtin_tables(31).frequencies[chosen[:, 0][:, None], symbols] / 1024).sum()
    spent = 16 * streams.words.size + 32 * streams.states.size
    # Beyond the symbols a lane costs its 32-bit state, of which 16 to 32 bits are symbols.
    assert ideal <= spent <= ideal * 1.005 + 32 * streams.states.size


def test_the_most_improbable_symbols_fit(backend):
    symbols = np.full((1, 300, 40), 15, np.uint8)
    chosen = np.zeros((1, 1, 40), np.uint8)  # the narrowest table: 10 bits for each of these
    streams = rans.encode(symbols, chosen, builtin_tables(31), backend=backend)
    assert streams.words.size * 16 <= 300 * 40 * 10
    assert np.array_equal(rans.decode(streams, chosen, builtin_tables(31), 300, backend=backend), symbols)


def test_damaged_streams_are_refused_or_decode_to_something(backend):
    symbols, chosen = make(11, 2, 60, 40, 31)
    streams = rans.encode(symbols, chosen, builtin_tables(31), backend=backend)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        name = str(rng.choice(["states", "counts", "words"]))
        array = getattr(streams, name).copy()
        place = tuple(rng.integers(0, size) for size in array.shape)
        array[place] ^= array.dtype.type(1 << int(rng.integers(0, 8 * array.itemsize)))
        try:
            got = rans.decode(
                dataclasses.replace(streams, **{name: array}), chosen, builtin_tables(31), 60, backend=backend
            )
        except CorruptStreamError:
            refused += 1
        else:
            assert got.shape == symbols.shape
            assert got.max() < 31
    assert refused >= 50


def test_words_moved_between_groups_are_refused(backend):
    symbols, chosen = make(12, 1, 60, 64, 31)
    streams = rans.encode(symbols, chosen, builtin_tables(31), backend=backend)
    counts = streams.counts + np.array([[1, -1]], np.int64)
    with pytest.raises(CorruptStreamError):
        rans.decode(
            dataclasses.replace(streams, counts=counts.astype(np.uint32)),
            chosen,
            builtin_tables(31),
            60,
            backend=backend,
        )


def test_wrong_arguments():
    symbols, chosen = make(1, 1, 4, 8, 31)
    with pytest.raises(ValueError, match="at least one"):
        rans.encode(symbols[:, :0], chosen, builtin_tables(31))
    with pytest.raises(ValueError, match="chosen must be"):
        rans.encode(symbols, chosen[:, :, :4], builtin_tables(31))
    with pytest.raises(ValueError, match="uint8"):
        rans.encode(symbols.astype(np.int32), chosen, builtin_tables(31))
    streams = rans.encode(symbols, chosen, builtin_tables(31))
    with pytest.raises(CorruptStreamError, match="add up"):
        rans.decode(dataclasses.replace(streams, words=streams.words[:-1]), chosen, builtin_tables(31), 4)


def test_symbols_that_cannot_be_coded():
    tables = builtin_tables(127)
    symbols = np.zeros((1, 6, 4), np.uint8)
    chosen = np.array([[[0] * 4, [31] * 4]], np.uint8)  # even steps use the narrowest table, odd ones the widest
    symbols[0, 1] = 63
    rans.encode(symbols, chosen, tables)
    symbols[0, 4, 3] = 63
    with pytest.raises(ValueError, match="frequency 0"):
        rans.encode(symbols, chosen, tables)
    symbols[0, 4, 3] = 127
    with pytest.raises(ValueError, match="below 127"):
        rans.encode(symbols, chosen, tables)
    with pytest.raises(ValueError, match="no table 32"):
        rans.encode(symbols, chosen + np.uint8(1), tables)
