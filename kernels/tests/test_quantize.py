"""The quantizer: one test base over every backend, and the reference against arithmetic written out by hand."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmcache_kit_kernels import UnknownBackendError
from lmcache_kit_kernels.quantize import dequantize, quantize, representable

DTYPES = [ml_dtypes.bfloat16, np.float16, np.float32]
OPERATION = "quantize"


def random_bits(rng, dtype, shape):
    """Arrays with every kind of value: NaN of any payload, infinities, denormals, both zeros."""
    return rng.integers(0, 256, size=(*shape[:-1], shape[-1] * np.dtype(dtype).itemsize), dtype=np.uint8).view(dtype)


def normal(rng, dtype, shape):
    return (rng.standard_normal(shape) * np.exp2(rng.integers(-14, 8, (*shape[:2], 1)))).astype(dtype)


def to_nearest_float32(value: Fraction) -> np.float32:
    """Correct rounding by bisection between neighbours, independent of any division unit."""
    guess = np.float32(float(value))
    around = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    best = min(around, key=lambda c: (abs(Fraction(float(c)) - value), int(c.view(np.uint32)) & 1))
    return np.float32(best)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", [15, 31, 127])
def test_reference_follows_the_formula_in_exact_arithmetic(dtype, levels):
    x = normal(np.random.default_rng(levels), dtype, (1, 4, 9))
    symbols, maxima = quantize(x, np.array([levels]))
    values = dequantize(symbols, maxima, np.array([levels]))
    middle = levels // 2
    for t in range(4):
        row = [Fraction(float(v)) for v in x[0, t]]
        top = max(abs(v) for v in row)
        assert Fraction(float(maxima[0, t])) == top
        factor = to_nearest_float32(Fraction(middle) / top)
        for c, value in enumerate(row):
            product = to_nearest_float32(value * Fraction(float(factor)))
            total = to_nearest_float32(Fraction(float(product)) + middle)
            assert symbols[0, t, c] == round(Fraction(float(total)))  # Python rounds half to even
            step = to_nearest_float32(Fraction(int(symbols[0, t, c]) - middle, middle))
            wide = to_nearest_float32(Fraction(float(step)) * top)
            assert values[0, t, c] == wide.astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_error_is_at_most_half_a_step(dtype):
    x = normal(np.random.default_rng(5), dtype, (2, 40, 96))
    levels = np.array([15, 31])
    values = dequantize(*quantize(x, levels), levels).astype(np.float64)
    top = np.abs(x.astype(np.float64)).max(axis=2, keepdims=True)
    half_step = top / (levels[:, None, None] // 2) / 2
    rounding = top * float(ml_dtypes.finfo(dtype).eps)
    assert np.all(np.abs(values - x.astype(np.float64)) <= half_step * (1 + 1e-6) + rounding)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_outliers_and_values_that_cannot_be_scaled(backend, dtype):
    x = np.zeros((1, 6, 5), dtype=dtype)
    x[0, 1] = ml_dtypes.finfo(dtype).max
    x[0, 2, 3] = np.nan
    x[0, 3, 0] = -np.inf
    x[0, 4] = ml_dtypes.finfo(dtype).smallest_subnormal
    x[0, 5, 2] = -1
    symbols, maxima = quantize(x, np.array([31]), backend=backend)
    assert symbols[0, 0].tolist() == [15] * 5
    assert symbols[0, 1].tolist() == [30] * 5
    assert symbols[0, 5].tolist() == [15, 15, 0, 15, 15]
    outside = [2, 3] if dtype == np.float16 else [2, 3, 4]  # the smallest float16 is far above the bound
    for token in outside:
        assert symbols[0, token].tolist() == [15] * 5
        assert not representable(maxima[:, token : token + 1])[0]
    inside = [token for token in range(6) if token not in outside]
    assert representable(maxima[:, inside])[0]
    values = dequantize(symbols[:, inside], maxima[:, inside], np.array([31]), backend=backend)
    assert np.array_equal(values[0, 0], x[0, 0])
    assert np.array_equal(values[0, 1], x[0, 1])
    assert np.array_equal(values[0, inside.index(5)], x[0, 5])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 1100])
def test_backends_agree_bit_for_bit(other, dtype, channels):
    rng = np.random.default_rng(channels)
    x = np.concatenate([random_bits(rng, dtype, (2, 6, channels)), normal(rng, dtype, (2, 3, channels))], axis=1)
    levels = np.array([31, 127])
    symbols, maxima = quantize(x, levels)
    other_symbols, other_maxima = quantize(x, levels, backend=other)
    assert np.array_equal(symbols, other_symbols)
    assert other_maxima.dtype == maxima.dtype
    assert other_maxima.tobytes() == maxima.tobytes()
    assert np.all(symbols < levels[:, None, None])
    scaled = slice(6, None)
    values = dequantize(symbols[:, scaled], maxima[:, scaled], levels)
    others = dequantize(symbols[:, scaled], maxima[:, scaled], levels, backend=other)
    assert others.dtype == values.dtype
    assert others.tobytes() == values.tobytes()


@settings(max_examples=25, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(DTYPES))
def test_xla_agrees_where_rounding_is_close_to_a_tie(data, dtype):
    # Values at k + 1/2 steps of the maximum are where a fused multiply-add or a sloppy division would show.
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    top = np.abs(normal(rng, dtype, (2, 16, 1))).astype(np.float64) + 2.0**-10
    levels = np.array([15, 31])
    halves = (rng.integers(-14, 15, (2, 16, 40)) + 0.5) / (levels // 2)[:, None, None] * top
    x = np.concatenate([top, np.clip(halves, -top, top)], axis=2).astype(dtype)
    ours, theirs = quantize(x, levels), quantize(x, levels, backend="xla")
    assert np.array_equal(ours[0], theirs[0])


def test_empty_and_wrong_arguments():
    symbols, maxima = quantize(np.zeros((0, 4, 2), np.float32), np.zeros(0, int))
    assert symbols.shape == (0, 4, 2)
    assert maxima.shape == (0, 4)
    x = np.zeros((1, 2, 3), np.float32)
    for levels in ([16], [13], [129], [31, 31]):
        with pytest.raises(ValueError, match="levels must be"):
            quantize(x, np.array(levels))
    with pytest.raises(ValueError, match="float64"):
        quantize(x.astype(np.float64), np.array([31]))
    with pytest.raises(ValueError, match="maxima"):
        dequantize(np.zeros((1, 2, 3), np.uint8), np.zeros((1, 3), np.float32), np.array([31]))
    with pytest.raises(UnknownBackendError, match="numpy, xla"):
        quantize(x, np.array([31]), backend="cuda")
