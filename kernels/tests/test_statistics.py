"""Centres, tables and deltas against the definition in Python integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmcache_kit_kernels import statistics
from lmcache_kit_kernels.tables import builtin_tables

OPERATION = "statistics"

ALPHABETS = [(15, False), (31, False), (127, True)]


def make(seed, shape, levels, centred):
    """Channels wide and narrow, some of neighbouring tokens alike, some constant, some of a single far symbol."""
    rng = np.random.default_rng(seed)
    count, _, channels = shape
    spread = rng.uniform(0, levels, (count, 1, channels)) * rng.choice([0, 0.05, 0.3], (count, 1, channels))
    values = rng.normal(0, spread + 1e-9, shape)
    alike = rng.random((count, 1, channels)) < 0.4
    values = np.where(alike, np.cumsum(values / 4, axis=1) * spread / levels, values)
    if centred:
        values = np.rint(values).clip(-(levels // 2), levels // 2)
        far = rng.random((count, channels)) < 0.2
        values[:, 0] = np.where(far, levels // 2, values[:, 0])
        return (values.astype(int) % levels).astype(np.uint8)
    values += rng.uniform(0, levels, (count, 1, channels))
    return np.rint(values).clip(0, levels - 1).astype(np.uint8)


def slow_fit(channel, levels, centred, group):
    """The definition: centre, table, flag and coded symbols of one channel."""
    tables = builtin_tables(levels)
    channel = [int(s) for s in channel]

    def signed(residue):
        return residue - levels if residue > levels // 2 else residue

    centre = 0 if centred else int(np.floor(sum(channel) / len(channel) + 0.5))
    distances = [signed(s) if centred else s - centre for s in channel]
    plain = [d % levels for d in distances]
    sizes, coded, flag = [abs(d) for d in distances], plain, False
    if group:
        delta = [u if t % group == 0 else (u - plain[t - t % group]) % levels for t, u in enumerate(plain)]
        delta_sizes = [abs(signed(v)) for v in delta]
        if sum(delta_sizes) < sum(sizes):
            sizes, coded, flag = delta_sizes, delta, True
    spread = 1024 * sum(sizes) // len(channel)
    table = sum(spread >= int(limit) for limit in tables.thresholds)
    return centre, max(table, int(tables.cover[min(max(sizes), levels // 2)])), flag, coded


def check(backend, symbols, levels, centred, group):
    tables = builtin_tables(levels)
    found = statistics.fit(symbols, tables, centred=centred, anchor_group=group, backend=backend)
    assert (found.flags is None) == (group == 0)
    for b in range(symbols.shape[0]):
        for c in range(symbols.shape[2]):
            centre, table, flag, coded = slow_fit(symbols[b, :, c], levels, centred, group)
            assert (found.centres[b, c], found.tables[b, c]) == (centre, table)
            assert found.flags is None or found.flags[b, c] == flag
            assert found.coded[b, :, c].tolist() == coded
            assert tables.frequencies[table][coded].all(), "a symbol cannot be coded"
    again = statistics.restore(found.coded, found.centres, found.flags, levels, anchor_group=group, backend=backend)
    assert again.dtype == np.uint8
    assert np.array_equal(again, symbols)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 35), st.integers(1, 6)),
    alphabet=st.sampled_from(ALPHABETS),
    group=st.sampled_from([0, 1, 2, 10, 100]),
)
def test_the_definition_for_any_shape(quick, seed, shape, alphabet, group):
    check(quick, make(seed, shape, *alphabet), *alphabet, group)


# Few shapes: each is a compilation.
@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize(("tokens", "group"), [(1, 0), (34, 10)])
def test_the_definition_on_every_backend(backend, alphabet, tokens, group):
    for seed in range(5):
        check(backend, make(seed, (2, tokens, 9), *alphabet), *alphabet, group)


def test_sums_of_the_most_tokens_do_not_overflow(backend):
    symbols = np.full((1, statistics.MAX_TOKENS, 2), 63, np.uint8)
    symbols[:, ::2, 1] = 64
    found = statistics.fit(symbols, builtin_tables(127), centred=True, anchor_group=10, backend=backend)
    assert found.flags.tolist() == [[True, True]]  # -1 or +1 after the wrap, instead of 63
    symbols = np.zeros((1, statistics.MAX_TOKENS, 1), np.uint8)
    symbols[:, ::2] = 30
    found = statistics.fit(symbols, builtin_tables(31), centred=False, backend=backend)
    assert found.centres.tolist() == [[15]]
    assert found.tables.tolist() == [[31]]


def test_wrong_arguments():
    tables = builtin_tables(31)
    with pytest.raises(ValueError, match="65536 tokens"):
        statistics.fit(np.zeros((1, statistics.MAX_TOKENS + 1, 1), np.uint8), tables, centred=False)
    with pytest.raises(ValueError, match="uint8"):
        statistics.fit(np.zeros((1, 3, 1), np.int32), tables, centred=False)
    with pytest.raises(ValueError, match="anchor group"):
        statistics.fit(np.zeros((1, 3, 1), np.uint8), tables, centred=False, anchor_group=-1)
    zeros = np.zeros((1, 1), np.uint8)
    with pytest.raises(ValueError, match="come together"):
        statistics.restore(np.zeros((1, 3, 1), np.uint8), zeros, None, 31, anchor_group=10)
