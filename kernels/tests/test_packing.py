"""Packed integers against arithmetic on one large number, with numpy and compiled."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmcache_kit_kernels import CorruptStreamError
from lmcache_kit_kernels.packing import pack_rows, packed_size, unpack_rows

NEEDS_NUMBA = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="the numba backend needs numba")
BACKENDS = pytest.mark.parametrize("backend", ["numpy", pytest.param("numba", marks=NEEDS_NUMBA)])


@BACKENDS
@settings(deadline=None)
@given(st.data(), st.integers(1, 8), st.integers(0, 70), st.integers(1, 3))
def test_packing_is_that_of_one_large_number(backend, data, width, count, rows):
    seed = data.draw(st.integers(0, 2**32))
    array = np.random.default_rng(seed).integers(0, 1 << width, (rows, count)).astype(np.uint8)
    packed = pack_rows(array, width, backend=backend)
    assert packed.shape == (rows, packed_size(count, width))
    for row, plain in zip(packed, array, strict=True):
        number = sum(int(value) << place * width for place, value in enumerate(plain))
        assert row.tobytes() == number.to_bytes(packed_size(count, width), "little")
    values = unpack_rows(packed, count, width, backend=backend)
    assert values.dtype == np.uint8
    assert np.array_equal(values, array)
    # Rows as they lie in a larger array.
    wide = np.full((rows, packed.shape[1] + 5), 0xFF, np.uint8)
    wide[:, 3 : 3 + packed.shape[1]] = packed
    assert np.array_equal(unpack_rows(wide[:, 3 : 3 + packed.shape[1]], count, width, backend=backend), array)


@BACKENDS
@pytest.mark.parametrize(("count", "width"), [(1, 1), (3, 2), (1, 4), (3, 5), (9, 7)])
def test_unused_bits_must_be_zero(backend, count, width):
    packed = pack_rows(np.zeros((2, count), np.uint8), width, backend=backend)
    packed[1, -1] = 0x80
    with pytest.raises(CorruptStreamError, match="not zero"):
        unpack_rows(packed, count, width, backend=backend)


@BACKENDS
def test_a_row_of_another_size_is_refused(backend):
    packed = pack_rows(np.zeros((2, 9), np.uint8), 5, backend=backend)
    for count in (7, 10, 100):
        with pytest.raises(CorruptStreamError, match=f"do not hold {count} integers"):
            unpack_rows(packed, count, 5, backend=backend)
