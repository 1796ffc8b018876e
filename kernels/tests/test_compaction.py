"""Compaction of runs, and the check that it sums up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lmcache_kit_kernels.checks import weighted_sum
from lmcache_kit_kernels.compaction import compact

OPERATION = "compaction"


def slow_sum(words, first=0):
    return sum(int(word) * (2 * (first + i) + 1) for i, word in enumerate(words)) % 2**32


# Two shapes: each is a compilation. 256 and 4 words are where strips and powers of two end.
@pytest.mark.parametrize(("shape", "counts"), [((2, 3, 300), [[0, 300, 256], [1, 0, 257]]), ((1, 1, 4), [[4]])])
def test_runs_move_together_and_are_summed_up(backend, shape, counts):
    rng = np.random.default_rng(0)
    scratch = rng.integers(0, 2**16, shape, dtype=np.uint16)
    counts = np.array(counts, np.uint32)
    first = rng.integers(0, 2**31, shape[0])
    words, sums = compact(scratch, counts, first, backend=backend)
    assert (words.dtype, sums.dtype) == (np.uint16, np.uint32)
    expected = []
    for b in range(shape[0]):
        position = int(first[b])
        for g in range(shape[1]):
            run = scratch[b, g, shape[2] - int(counts[b, g]) :].tolist()
            assert sums[b, g] == slow_sum(run, position)
            position += len(run)
            expected += run
        block = expected[len(expected) - int(counts[b].sum()) :]
        assert int(sums[b].sum(dtype=np.uint64)) % 2**32 == weighted_sum(np.array(block, np.uint16), int(first[b]))
    assert words.tolist() == expected


def test_nothing_to_move_and_wrong_arguments(backend):
    scratch, counts = np.zeros((1, 2, 5), np.uint16), np.zeros((1, 2), np.uint32)
    words, sums = compact(scratch, counts, backend=backend)
    assert words.size == 0
    assert sums.tolist() == [[0, 0]]
    with pytest.raises(ValueError, match="does not fit a room of 5"):
        compact(scratch, counts + np.uint32(6), backend=backend)
    with pytest.raises(ValueError, match="with counts"):
        compact(scratch, counts[:, :1], backend=backend)
    with pytest.raises(ValueError, match="one entry for each of 1 blocks"):
        compact(scratch, counts + np.uint32(1), np.zeros(2, int), backend=backend)


@given(
    words=st.lists(st.integers(0, 2**16 - 1), max_size=30),
    first=st.sampled_from([0, 1, 2**16 - 1, 2**31 - 1, 2**31 + 5, 2**32 - 1, 2**40]),
)
def test_check_is_the_definition(words, first):
    assert weighted_sum(np.array(words, np.uint16), first) == slow_sum(words, first)


def test_check_of_more_words_than_are_summed_at_once():
    words = np.random.default_rng(1).integers(0, 2**16, 200_001, dtype=np.uint16)
    whole = weighted_sum(words, 7)
    weights = 2 * (7 + np.arange(words.size, dtype=np.uint64)) + 1
    assert whole == int((words.astype(np.uint64) * weights).sum()) % 2**32
    assert whole == (weighted_sum(words[:70_000], 7) + weighted_sum(words[70_000:], 70_007)) % 2**32


@given(st.data())
def test_one_changed_word_or_two_near_ones_change_the_check(data):
    words = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 2**16, 100, dtype=np.uint16)
    before = weighted_sum(words)
    changed = words.copy()
    for place in data.draw(st.lists(st.integers(0, 99), min_size=1, max_size=2, unique=True)):
        changed[place] ^= 1 << data.draw(st.integers(0, 15))
    assert weighted_sum(changed) != before
