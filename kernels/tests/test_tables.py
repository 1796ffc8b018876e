"""The built-in tables, the choice among tables, and what a table set must be."""

from __future__ import annotations

import dataclasses
import decimal
import hashlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lmcache_kit_kernels import tables
from lmcache_kit_kernels.tables import builtin_tables, choose, decoding_table
from lmcache_kit_kernels.tables.prototypes import builtin_tables_by_levels

LEVELS = [15, 31, 127]


def magnitudes(levels):
    return np.minimum(np.arange(levels), levels - np.arange(levels))


@pytest.mark.parametrize("levels", LEVELS)
def test_frequencies_sum_up_and_cover_what_they_say(levels):
    found = builtin_tables(levels)
    frequencies = found.frequencies.astype(int)
    assert frequencies.shape == (tables.NUM_TABLES, levels)
    assert np.all(frequencies.sum(axis=1) == 1024)
    assert frequencies.max() <= 1023
    reach = np.array([magnitudes(levels)[row > 0].max() for row in frequencies])
    for row, far in zip(frequencies, reach, strict=True):
        assert np.all((row > 0) == (magnitudes(levels) <= far))
    assert found.cover.tolist() == [int(np.argmax(reach >= a)) for a in range(levels // 2 + 1)]
    if levels == 127:
        sigmas = [0.27 * (32 / 0.27) ** (i / 31) for i in range(32)]
        assert reach.tolist() == [min(63, max(6, math.ceil(5 * s - 1e-9) + 2)) for s in sigmas]
    else:
        assert set(reach) == {levels // 2}


@pytest.mark.parametrize("levels", LEVELS)
def test_tables_are_centred_and_grow_in_width(levels):
    frequencies = builtin_tables(levels).frequencies.astype(int)
    upper, lower = frequencies[:, 1 : levels // 2 + 1], frequencies[:, : levels // 2 : -1]
    # Largest remainders may give the upper of two equal neighbours one more.
    assert np.all((upper - lower >= 0) & (upper - lower <= 1))
    assert np.all(np.diff(frequencies[:, 0]) < 0), "two tables are the same"
    assert np.all(np.diff(upper, axis=1) <= 0)


@pytest.mark.parametrize("levels", LEVELS)
def test_thresholds_lie_between_the_mean_magnitudes(levels):
    """In floats, of the densities that the tables approximate."""
    found = builtin_tables(levels)
    widest = 32 if levels == 127 else levels / 2
    means = []
    for i, row in enumerate(found.frequencies):
        sigma = 0.27 * (widest / 0.27) ** (i / 31)
        weights = np.exp(-(magnitudes(levels) ** 2) / (2 * sigma**2)) * (row > 0)
        means.append((weights * magnitudes(levels)).sum() / weights.sum())
    expected = [1024 * math.sqrt(a * b) for a, b in itertools.pairwise(means)]
    assert np.abs(found.thresholds - expected).max() <= 0.5 + 1e-6
    assert np.all(np.diff(found.thresholds.astype(int)) > 0)


def test_gains_are_those_of_a_rounded_normal_variable():
    for i, gain in enumerate(builtin_tables(127).gains):
        sigma = 0.27 * (32 / 0.27) ** (i / 31)
        x = np.arange(-300, 300, 1 / 64) + 1 / 128  # midpoints: no x on a border between cells
        density = np.exp(-(x**2) / (2 * sigma**2))
        q = np.rint(x)
        expected = 256 * (density * x * q).sum() / (density * q * q).sum()
        assert abs(gain - min(256, expected)) <= 0.5 + 0.05, i
    for levels in (15, 31):
        assert set(builtin_tables(levels).gains) == {256}


# The tables are part of the bitstream: a payload written by one release must decode in every later one.
@pytest.mark.parametrize(
    ("levels", "digest"), [(15, "5241a393ca0f0eeb"), (31, "e7410c000ee6dbe2"), (127, "e0b4377154c4891f")]
)
def test_tables_never_change(levels, digest):
    assert digest_of(builtin_tables(levels)) == digest


def digest_of(found):
    fields = (found.frequencies, found.thresholds, found.cover, found.gains)
    data = b"".join(array.astype(f"<u{array.itemsize}").tobytes() for array in fields) + found.fingerprint
    return hashlib.sha256(data).hexdigest()[:16]


def test_tables_do_not_depend_on_the_callers_decimal_context():
    with decimal.localcontext(decimal.Context(prec=3, rounding=decimal.ROUND_UP)):
        again = builtin_tables.__wrapped__(127)
    assert digest_of(again) == digest_of(builtin_tables(127))


@pytest.mark.parametrize("levels", LEVELS)
def test_decoding_table_inverts_the_frequencies(levels):
    found = builtin_tables(levels)
    for row, entries in zip(found.frequencies.astype(int), decoding_table(found), strict=True):
        slots = [(symbol, int(f), place) for symbol, f in enumerate(row) for place in range(f)]
        assert [(int(e & 127), int(e >> 7 & 1023), int(e >> 17)) for e in entries] == slots


@given(levels=st.sampled_from(LEVELS), spread=st.integers(0, 2**32 - 1), largest=st.integers(0, 126))
def test_choice_is_the_definition(levels, spread, largest):
    found = builtin_tables(levels)
    by_spread = sum(spread >= int(threshold) for threshold in found.thresholds)
    expected = max(by_spread, int(found.cover[min(largest, levels // 2)]))
    chosen = choose(found, np.array([[spread]], np.uint32), np.array([[largest]]))
    assert chosen.tolist() == [[expected]]
    assert chosen.dtype == np.uint8


def test_a_table_set_owns_its_arrays_and_refuses_what_does_not_fit():
    good = builtin_tables(127)
    mine = good.frequencies.copy()
    copied = dataclasses.replace(good, frequencies=mine)
    mine[:] = 0
    assert np.array_equal(copied.frequencies, good.frequencies)
    with pytest.raises(ValueError, match="read-only"):
        copied.frequencies[0, 0] = 1

    def changed(array, place, value):
        array = array.copy()
        array[place] = value
        return array

    two_more = changed(changed(good.frequencies, (3, 0), good.frequencies[3, 0] - 1), (3, 63), 1)
    dataclasses.replace(good, frequencies=two_more)  # a symbol more than the cover says does no harm
    gap = changed(good.frequencies, (3, 1), 0)
    gap[3, 0] += good.frequencies[3, 1]
    everything = np.zeros_like(good.frequencies)
    everything[:, 0] = 1024
    for wrong, match in [
        ({"frequencies": gap}, "magnitude up to 1"),
        ({"frequencies": changed(good.frequencies, (0, 0), 5)}, "sum to 1024"),
        ({"frequencies": everything}, "none may take all"),
        ({"frequencies": good.frequencies[:, :31]}, "frequencies must be"),
        ({"thresholds": good.thresholds[::-1]}, "ascend"),
        ({"thresholds": -good.thresholds.astype(np.int64)}, "thresholds must be"),
        ({"thresholds": good.thresholds.astype(float)}, "thresholds must be"),
        ({"cover": changed(good.cover, 63, 20)}, "every symbol of magnitude up to 63"),
        ({"cover": changed(good.cover, 63, 32)}, "no table covers magnitude 63"),
        ({"gains": changed(good.gains, 0, 257)}, "at most 256"),
        ({"fingerprint": b"short"}, "16 bytes"),
        ({"levels": 63}, "not 63"),
    ]:
        with pytest.raises(ValueError, match=match):
            dataclasses.replace(good, **wrong)
    small = builtin_tables(31)
    none = small.frequencies.copy()
    none[0, 0] += none[0, 15]
    none[0, 15] = 0
    with pytest.raises(ValueError, match="must have every symbol"):
        dataclasses.replace(small, frequencies=none)


def test_builtin_sets():
    assert sorted(builtin_tables_by_levels()) == LEVELS
    assert builtin_tables(31) is builtin_tables_by_levels()[31]
    assert builtin_tables(31).fingerprint == bytes(16)
    with pytest.raises(ValueError, match="15, 31, 127"):
        builtin_tables(63)
