"""Packed integers against arithmetic on one large number."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lmcache_kit_cachegen.bits import pack_rows, packed_bytes, unpack_rows

from lmcache_kit.errors import BlobError


@given(st.data(), st.integers(1, 8), st.integers(0, 40), st.integers(1, 3))
def test_packing_is_that_of_one_large_number(data, width, count, rows):
    values = data.draw(st.lists(st.integers(0, 2**width - 1), min_size=rows * count, max_size=rows * count))
    array = np.array(values, dtype=np.uint8).reshape(rows, count)
    packed = pack_rows(array, width)
    assert packed.shape == (rows, packed_bytes(count, width))
    for row, plain in zip(packed, array, strict=True):
        number = sum(int(value) << place * width for place, value in enumerate(plain))
        assert row.tobytes() == number.to_bytes(packed_bytes(count, width), "little")
    assert np.array_equal(unpack_rows(packed, count, width), array)


@pytest.mark.parametrize(("count", "width"), [(1, 1), (3, 2), (1, 4), (3, 5), (9, 7)])
def test_unused_bits_must_be_zero(count, width):
    packed = pack_rows(np.zeros((2, count), np.uint8), width)
    packed[1, -1] = 0x80
    with pytest.raises(BlobError, match="not zero"):
        unpack_rows(packed, count, width)
