"""What the check of a block shows for certain, and that no more is promised.

The check is linear: changing word i by d changes it by ``d * (2 * i + 1)``, wherever the word is summed.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lmcache_kit_kernels.checks import weighted_sum

WORD = st.integers(0, 2**16 - 1)
CERTAIN = 2**15  # words among which two flipped bits always show


@given(before=WORD, after=WORD, place=st.integers(0, 2**40))
def test_any_change_of_one_word_shows(before, after, place):
    sums = [weighted_sum(np.array([word], np.uint16), place) for word in (before, after)]
    assert (sums[0] == sums[1]) == (before == after)


def change(flips):
    """How much the check changes where zeros become ones (+) and ones zeros (-)."""
    return sum(sign * weighted_sum(np.array([1 << bit], np.uint16), place) for place, bit, sign in flips) % 2**32


@given(
    places=st.tuples(st.integers(0, 2**20), st.integers(0, 2**20)),
    bits=st.tuples(st.integers(0, 15), st.integers(0, 15)).filter(lambda bits: bits[0] != bits[1]),
    sign=st.sampled_from([-1, 1]),
)
def test_flips_of_two_different_bits_show_at_any_distance(places, bits, sign):
    # The lower one's factor of two is missing in the other's sum.
    assert change([(places[0], bits[0], 1), (places[1], bits[1], sign)])


@pytest.mark.parametrize("bit", range(16))
def test_two_flips_of_one_bit_show_unless_the_places_are_as_documented(bit):
    period = 2 ** (31 - bit)
    # Of all places i > j below CERTAIN, every difference i - j and every sum i + j + 1.
    differences, sums = np.arange(1, CERTAIN, dtype=np.uint64), np.arange(2, 2 * CERTAIN, dtype=np.uint64)
    for numbers in (differences, sums):
        assert np.all(numbers << np.uint64(bit + 1) & np.uint64(2**32 - 1))
        assert numbers.max() < period
    for first, second in [(0, 1), (0, CERTAIN - 1), (CERTAIN - 2, CERTAIN - 1), (5, 70_000), (9, 9 + 2 * period)]:
        for sign in (-1, 1):
            number = second - first if sign < 0 else first + second + 1
            got = change([(first, bit, 1), (second, bit, sign)])
            assert got == sign * (number << (bit + 1)) % 2**32
            assert (got == 0) == (number % period == 0)
    # The nearest places that cancel: a bit goes and returns, or comes twice.
    assert change([(0, bit, 1), (period, bit, -1)]) == 0
    assert change([(period // 2 - 1, bit, 1), (period // 2, bit, 1)]) == 0


def test_two_changed_words_can_cancel():
    words = np.zeros(2, np.uint16)
    words[0] = 3
    assert weighted_sum(words) == weighted_sum(np.array([0, 1], np.uint16))
