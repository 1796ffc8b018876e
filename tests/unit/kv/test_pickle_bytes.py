"""Byte for byte what pickle makes."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache_kit.kv.pickle_bytes import pickle_bytes

integers = (
    st.integers()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from(
        [
            sign * 2**power + more
            for power in (0, 7, 8, 15, 16, 31, 32, 63, 64, 127)
            for sign in (1, -1)
            for more in (-1, 0, 1)
        ]
    )
)
chunks = st.tuples(integers, st.lists(integers, max_size=300).map(tuple), st.just(()))


@given(chunks | integers | st.text(max_size=30))
def test_it_is_what_pickle_makes(value: object) -> None:
    assert pickle_bytes(value) == pickle.dumps(value, protocol=5)


@pytest.mark.parametrize("size", [13_105, 13_106, 13_107, 13_108, 13_109, 30_000, 200_000])
def test_long_chunks_are_cut_into_frames(size: int) -> None:
    value = (2**63, tuple(range(70_000, 70_000 + size)), ())
    assert pickle_bytes(value) == pickle.dumps(value, protocol=5)


@pytest.mark.parametrize("value", [None, 1.5, [1], {"a": 1}, (1, (2.0,)), "x" * 256])
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        pickle_bytes(value)
