from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache_kit.codec_tools import difference
from lmcache_kit.kv import KVLayout, KVTensor

NAN, INF = math.nan, math.inf
FLOATS = st.one_of(st.floats(width=32), st.sampled_from([0.0, -0.0, NAN, INF, -INF, 2.0**127, -(2.0**127), 2.0**-149]))


def tensor(values: list[float], dtype: str = "float32") -> KVTensor:
    """The values as one channel of as many layers."""
    layout = KVLayout(len(values), 1, 1, dtype, 1)
    with np.errstate(over="ignore"):
        return KVTensor(layout, np.array(values).astype(layout.np_dtype).reshape(layout.shape(1)))


@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=20))
def test_it_is_what_the_definition_says(pairs: list[tuple[float, float]]) -> None:
    found = difference(tensor([x for x, _ in pairs]), tensor([y for _, y in pairs]))
    both = [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]
    same = [x == y or (math.isnan(x) and math.isnan(y)) for x, y in pairs if (x, y) not in both]
    energy, error = math.fsum(x * x for x, _ in both), math.fsum((y - x) ** 2 for x, y in both)
    assert found.non_finite_mismatches == same.count(False)
    assert found.max_abs_error == max((abs(y - x) for x, y in both), default=0.0)
    if energy:
        assert found.nmse == pytest.approx(error / energy, rel=1e-9)
    else:
        assert found.nmse == (None if error else 0.0)


def test_what_is_not_finite_is_counted_and_the_rest_measured() -> None:
    found = difference(tensor([NAN, INF, INF, 1, 2, NAN]), tensor([NAN, INF, -INF, NAN, 3, 4]))
    assert found.non_finite_mismatches == 3
    assert found.nmse == 1 / 4
    assert found.max_abs_error == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_signalling_nans_are_no_warning(dtype: str) -> None:
    layout = KVLayout(1, 1, 2, dtype, 1)
    bits = {"bfloat16": 0x7F81, "float16": 0x7C01, "float32": 0x7F800001}[dtype]
    raw = np.full(2, bits, dtype=f"u{layout.np_dtype.itemsize}").view(layout.np_dtype).reshape(layout.shape(1))
    assert difference(KVTensor(layout, raw), KVTensor(layout, raw)).non_finite_mismatches == 0


def test_errors_beyond_the_dtype_are_measured() -> None:
    largest = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
    found = difference(tensor([largest], "bfloat16"), tensor([-largest], "bfloat16"))
    assert found.max_abs_error == 2 * largest
    assert found.nmse == 4
