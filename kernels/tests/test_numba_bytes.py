"""The compiled check: the definition's sums. (Compiled packing is in test_packing.)"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmcache_kit_kernels.checks import weighted_sum, word_sums

pytest.importorskip("numba", reason="the numba backend needs numba")

from lmcache_kit_kernels.blocks import numba_bytes


@settings(deadline=None)
@given(data=st.binary(max_size=200), first=st.integers(0, 2**40))
def test_weighted_sum_is_the_definition(data, first):
    data = data[: len(data) // 2 * 2]
    words = np.frombuffer(data, "<u2")
    expected = sum(int(word) * (2 * (first + index) + 1) for index, word in enumerate(words)) % 2**32
    unaligned = np.frombuffer(b"\0" + data, np.uint8)[1:].view("<u2")
    spread = np.repeat(words, 3)[::3]
    for spelling in (words, unaligned, spread):
        assert weighted_sum(spelling, first, backend="numba") == expected
        assert weighted_sum(spelling, first) == expected


def test_sums_of_a_long_run_and_of_its_parts():
    words = np.random.default_rng(0).integers(0, 1 << 16, 300_001).astype(np.uint16)
    assert word_sums(words, backend="numba") == word_sums(words)
    whole = weighted_sum(words, backend="numba")
    weighted, plain = word_sums(words[70_001:], backend="numba")
    parts = weighted_sum(words[:70_001], backend="numba") + weighted + 2 * 70_001 * plain
    assert parts % 2**32 == whole


def test_each_is_compiled_once():
    for name in ("_word_sums", "_pack", "_unpack"):
        assert len(getattr(numba_bytes, name).signatures) <= 1
