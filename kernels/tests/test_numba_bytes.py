"""Compiled checks and bit fields: the results of the numpy ones, and their refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmcache_kit_kernels import CorruptStreamError, checks, packing

pytest.importorskip("numba", reason="the numba backend needs numba")

from lmcache_kit_kernels.blocks import numba_bytes


@settings(deadline=None)
@given(data=st.binary(max_size=200), first=st.integers(0, 2**40))
def test_weighted_sum_is_the_definition(data, first):
    data = data[: len(data) // 2 * 2]
    words = np.frombuffer(data, "<u2")
    expected = sum(int(word) * (2 * (first + index) + 1) for index, word in enumerate(words)) % 2**32
    assert numba_bytes.weighted_sum(words, first) == expected
    assert numba_bytes.weighted_sum(np.frombuffer(data, np.uint8), first) == expected
    unaligned = np.frombuffer(b"\0" + data, np.uint8)[1:]
    assert numba_bytes.weighted_sum(unaligned, first) == expected


def test_weighted_sum_of_a_long_run_in_parts():
    words = np.random.default_rng(0).integers(0, 1 << 16, 300_001).astype(np.uint16)
    whole = numba_bytes.weighted_sum(words)
    assert whole == checks.weighted_sum(words)
    parts = numba_bytes.weighted_sum(words[:70_001]) + numba_bytes.weighted_sum(words[70_001:], 70_001)
    assert parts % 2**32 == whole


@settings(deadline=None)
@given(width=st.integers(1, 8), count=st.integers(0, 70), seed=st.integers(0, 2**32))
def test_fields_are_those_of_numpy(width, count, seed):
    values = np.random.default_rng(seed).integers(0, 1 << width, count).astype(np.uint8)
    packed = numba_bytes.pack_bits(values, width)
    assert packed.tobytes() == packing.pack_bits(values, width).tobytes()
    again = numba_bytes.unpack_bits(packed, count, width, limit=1 << width)
    assert again.dtype == np.uint8
    assert again.tolist() == values.tolist()


@settings(deadline=None)
@given(packed=st.binary(max_size=24), width=st.integers(1, 8), count=st.integers(0, 30), limit=st.integers(1, 256))
def test_what_numpy_refuses_is_refused_in_the_same_words(packed, width, count, limit):
    outcomes = []
    for module in (numba_bytes, packing):
        try:
            outcomes.append(module.unpack_bits(np.frombuffer(packed, np.uint8), count, width, limit=limit).tolist())
        except CorruptStreamError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


def test_each_is_compiled_once():
    for function in (numba_bytes._weighted_sum, numba_bytes._pack, numba_bytes._unpack):
        assert len(function.signatures) <= 1
