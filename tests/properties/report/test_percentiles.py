from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcache_kit.report import percentile, summarize

values = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=60)


@settings(deadline=None)
@given(values, st.floats(0, 100))
def test_percentiles_are_numpys(data: list[float], percent: float) -> None:
    assert percentile(data, percent) == pytest.approx(float(np.percentile(data, percent)), rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(values)
def test_a_summary_is_numpys(data: list[float]) -> None:
    summary = summarize(data)
    assert summary is not None
    assert summary["mean"] == pytest.approx(float(np.mean(data)), rel=1e-9, abs=1e-6)
    assert (summary["min"], summary["max"]) == (min(data), max(data))
    assert summary["min"] <= summary["p50"] <= summary["p90"] <= summary["p99"] <= summary["max"]


def test_nothing_has_no_percentile() -> None:
    assert summarize([]) is None
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)
    with pytest.raises(ValueError, match="between 0 and 100"):
        percentile([1.0], 101)
