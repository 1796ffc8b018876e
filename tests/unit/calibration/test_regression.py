"""Robust fits that are never negative, against coefficients that are known and against trying everything."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcache_kit.calibration.regression import fit, nonnegative_least_squares


def by_trying(matrix, target):
    """The least residual over every set of features that may be above zero."""
    count = matrix.shape[1]
    best = float(np.linalg.norm(target))
    for chosen in chain.from_iterable(combinations(range(count), size) for size in range(1, count + 1)):
        part = matrix[:, chosen]
        found = np.linalg.lstsq(part, target, rcond=None)[0]
        if (found >= 0).all():
            best = min(best, float(np.linalg.norm(part @ found - target)))
    return best


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 4), st.integers(5, 12), st.integers(0, 2**32 - 1))
def test_least_squares_without_negatives_is_the_best_of_all(features, samples, seed):
    rng = np.random.default_rng(seed)
    matrix, target = rng.normal(size=(samples, features)), rng.normal(size=samples)
    found = nonnegative_least_squares(matrix, target)
    assert (found >= 0).all()
    assert np.linalg.norm(matrix @ found - target) == pytest.approx(by_trying(matrix, target), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=3), st.integers(0, 2**32 - 1))
def test_what_made_the_times_is_found_though_a_third_is_disturbed(coefficients, seed):
    rng = np.random.default_rng(seed)
    columns = {f"f{place}": rng.uniform(0.1, 10, 60) for place in range(len(coefficients))}
    target = sum(values * each for values, each in zip(columns.values(), coefficients, strict=True))
    target = target + np.where(np.arange(60) % 3 == 0, rng.uniform(10, 1000, 60), 0.0)
    found = fit({name: values.tolist() for name, values in columns.items()}, target.tolist())
    assert list(found.values()) == pytest.approx(coefficients, rel=0.05, abs=3e-3 * max(coefficients))


def test_scales_that_differ_by_orders_of_magnitude_do_not_matter():
    tokens = [float(each) for each in range(100, 2000, 37)]
    squares = [each * each for each in tokens]
    target = [0.004 + 5e-5 * one + 2e-10 * two for one, two in zip(tokens, squares, strict=True)]
    found = fit({"base": [1.0] * len(tokens), "token": tokens, "square": squares}, target)
    assert found == pytest.approx({"base": 0.004, "token": 5e-5, "square": 2e-10}, rel=1e-3)


def test_a_feature_that_follows_from_others_is_left_out():
    ones, twos = [1.0] * 9, [2.0] * 9
    assert fit({"one": ones, "two": twos}, [3.0] * 9) == pytest.approx({"one": 3.0})
    assert fit({"two": twos, "one": ones}, [3.0] * 9) == pytest.approx({"two": 1.5})


def test_a_feature_that_is_zero_throughout_is_left_out():
    assert fit({"nothing": [0.0] * 4, "one": [1.0] * 4}, [2.0] * 4) == pytest.approx({"one": 2.0})


def test_no_more_features_than_samples_can_tell():
    assert fit({"one": [1.0]}, [2.0]) == {}
    assert list(fit({"one": [1.0, 1.0], "n": [1.0, 2.0]}, [2.0, 3.0])) == ["one"]
    assert fit({"one": []}, []) == {}


def test_what_would_be_negative_is_zero():
    n = [float(each) for each in range(1, 20)]
    found = fit({"one": [1.0] * 19, "n": n}, [100.0 - each for each in n])
    assert found["n"] == 0.0
    assert 80 <= found["one"] <= 100


def test_weights_say_whose_errors_count():
    ones = [1.0] * 5
    assert fit({"one": ones}, [1.0, 1.0, 9.0, 9.0, 9.0])["one"] == pytest.approx(9.0, rel=0.01)
    assert fit({"one": ones}, [1.0, 1.0, 9.0, 9.0, 9.0], [10.0, 10.0, 1.0, 1.0, 1.0])["one"] == pytest.approx(
        1.0, rel=0.01
    )


def test_times_that_are_all_zero_are_no_trouble():
    assert fit({"one": [1.0] * 4}, [0.0] * 4) == pytest.approx({"one": 0.0})
