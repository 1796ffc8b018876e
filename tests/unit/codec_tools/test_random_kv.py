from __future__ import annotations

import numpy as np
import pytest

from lmcache_kit.codec_tools import random_kv
from lmcache_kit.kv import KVLayout


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_it_has_the_layout_and_is_the_same_again(dtype: str) -> None:
    layout = KVLayout(2, 3, 4, dtype, 1)
    first, again, other = (random_kv(layout, 9, seed) for seed in (5, 5, 6))
    assert first.layout == layout
    assert first.data.shape == (2, 1, 9, 3, 4)
    assert bytes(first.tobytes_view()) == bytes(again.tobytes_view()) != bytes(other.tobytes_view())
    assert np.isfinite(first.data).all()


def test_the_dtypes_are_roundings_of_one_another() -> None:
    exact = random_kv(KVLayout(2, 3, 4, "float32"), 9, 0).data
    rounded = random_kv(KVLayout(2, 3, 4, "bfloat16"), 9, 0).data
    assert np.array_equal(rounded, exact.astype(rounded.dtype))


def test_channels_and_tokens_differ_as_described() -> None:
    data = random_kv(KVLayout(1, 64, 64, "float32"), 256, 0).data[0, 0].reshape(256, -1)
    # Spread of ln(std): sqrt(1/4) of the channels beside what little the estimate adds, sqrt(1/16) of the tokens.
    assert np.log(data.std(axis=0)).std() == pytest.approx(0.5, abs=0.05)
    assert np.log(data.std(axis=1)).std() == pytest.approx(0.25, abs=0.05)
