"""The uniform quantizer against exact arithmetic, and the backends against each other."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmcache_kit_kernels import CorruptStreamError
from lmcache_kit_kernels.uniform import Uniform, dequantize, quantize

OPERATION = "uniform"

DTYPES = [ml_dtypes.bfloat16, np.float16, np.float32]
# Significant bits, and exponents of the smallest and the largest normal number.
FORMATS = {"bfloat16": (8, -126, 127), "float16": (11, -14, 15), "float32": (24, -126, 127)}
FIELDS = ("exponents", "inverses", "offsets", "symbols", "refinements", "usable")


class Overflow(Exception):
    pass


def rounded(value: Fraction, form: str = "float32") -> Fraction:
    """The nearest number of a binary format, half to even, by integers alone. Raises Overflow beyond the largest."""
    bits, least, most = FORMATS[form]
    if value == 0:
        return value
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent += (Fraction(2) ** (exponent + 1) <= size) - (size < Fraction(2) ** exponent)
    unit = Fraction(2) ** (max(exponent, least) - bits + 1)
    result = round(value / unit) * unit
    if abs(result) >= Fraction(2) ** (most + 1):
        raise Overflow
    return result


def flushed(value: Fraction) -> Fraction:
    return value if abs(value) >= Fraction(2) ** -126 else Fraction(0)


def pattern(value: Fraction) -> int:
    return int(np.float32(float(value)).view(np.uint32)) >> 16


def value_of(bits: int) -> Fraction:
    return Fraction(float(np.array(bits, np.uint16).view(ml_dtypes.bfloat16)))


def slow_quantize(block, ratio, log_variance, refined, bits):
    """The definition for one block, a list of rows of Fractions of one dtype; None if it is not usable."""
    dtype, rows = block.dtype, block.tolist()
    if not np.isfinite(block).all():
        return None
    x = [[Fraction(float(value)) for value in row] for row in rows]
    tokens, channels = block.shape
    try:
        means, logs, mean_logs = [], [], []
        share = rounded(Fraction(1, tokens))
        for c in range(channels):
            first = second = Fraction(0)
            for row in x:
                value = rounded(row[c], "bfloat16") if dtype == np.float32 else row[c]
                value = value if abs(value) >= Fraction(2) ** -60 else Fraction(0)
                first, second = rounded(first + value), rounded(second + rounded(value * value))
            means.append(rounded(first * share))
            square = flushed(rounded(means[-1] * means[-1]))
            variance = flushed(max(Fraction(0), rounded(flushed(rounded(second * share)) - square)))
            logs.append(pattern(variance))
            mean_logs.append(pattern(square))
    except Overflow:
        return None
    largest = max(abs(value) for row in x for value in row)
    inverse = 0x3F80
    if largest:
        floor = max(max(logs) - 2048, max(mean_logs) - 2304, 0)
        measured = sum(max(log, floor) for log in logs) // channels
        inverse = ratio + 8128 - ((measured if log_variance is None else log_variance) >> 1)
        if largest < Fraction(2) ** -50:
            return None
    if not 0x0D80 <= inverse <= 0x7180:  # 2**-100 and 2**100
        return None
    scale = value_of(inverse)
    try:
        offsets = [round(rounded(mean * scale)) for mean in means]
        if max(map(abs, offsets)) > 32767:
            return None
        y = [[rounded(rounded(v * scale) - o) for v, o in zip(row, offsets, strict=True)] for row in x]
    except Overflow:
        return None
    exponents, symbols, refinements = [], [], []
    for t, row in enumerate(y):
        exponent = next((e for e in range(17) if round(max(map(abs, row)) / 2**e) <= 63), None)
        if exponent is None:
            return None
        signed = [round(v / 2**exponent) for v in row]
        exponents.append(exponent)
        symbols.append([s % 127 for s in signed])
        if t < refined:
            rests = [rounded(v / 2**exponent - s + Fraction(1, 2)) for v, s in zip(row, signed, strict=True)]
            refinements.append([min(max(math.floor(rest * 2**bits), 0), 2**bits - 1) for rest in rests])
    return exponents, inverse, offsets, symbols, refinements


def slow_dequantize(found, gains, bits, form):
    """The definition for one block, as Fractions (None where it overflows)."""
    exponents, inverse, offsets, symbols, refinements = found
    step = rounded(1 / value_of(inverse))
    out = []
    for t, row in enumerate(symbols):
        out.append([])
        for c, symbol in enumerate(row):
            signed = symbol - 127 if symbol > 63 else symbol
            if t < len(refinements):
                inside = (refinements[t][c] + Fraction(1, 2)) / 2**bits - Fraction(1, 2)
                units = offsets[c] + (signed + inside) * 2 ** exponents[t]
            else:
                units = offsets[c] + Fraction(int(gains[c]), 256) * signed * 2 ** exponents[t]
            try:
                out[-1].append(rounded(rounded(units * step), form))
            except Overflow:
                out[-1].append(None)
    return out


KINDS = ["normal", "offsets", "outlier", "constant", "zero", "tiny", "huge", "ties", "bits", "nan"]


def make(kind, rng, dtype, shape):
    """One block ``[T, C]`` of a kind that something could go wrong with."""
    x = rng.standard_normal(shape) * np.exp2(rng.integers(-3, 4, (1, shape[1])))
    if kind == "offsets":
        x += rng.standard_normal((1, shape[1])) * 2.0 ** rng.integers(0, 13)
    elif kind == "outlier":
        x[rng.integers(shape[0]), rng.integers(shape[1])] *= 2.0 ** rng.integers(4, 15)
    elif kind == "constant":
        x[:] = x[:1]
    elif kind == "zero":
        x[:] = rng.choice([0.0, -0.0], shape)
    elif kind == "tiny":
        x *= 2.0 ** rng.choice([-149, -128, -126, -100, -62, -60, -52, -49, -22, -15])
    elif kind == "huge":
        x *= 2.0 ** rng.choice([10, 14, 60, 63, 64, 100, 126])
    elif kind == "ties":
        x = rng.integers(-80, 80, shape) / 2.0 ** rng.integers(1, 5)
    elif kind == "bits":
        # Every pattern of a value, of either sign, up to a random exponent.
        size = np.dtype(dtype).itemsize
        patterns = rng.integers(0, 1 << (8 * size - 1), shape) % (1 << rng.integers(1, 8 * size))
        patterns |= rng.integers(0, 2, shape) << (8 * size - 1)
        return patterns.astype(f"u{size}").view(dtype)
    elif kind == "nan":
        x[rng.integers(shape[0]), rng.integers(shape[1])] = rng.choice([np.nan, np.inf, -np.inf])
    with np.errstate(over="ignore"):
        return x.astype(dtype)


ratios = st.integers(0x3D00, 0x42FF)  # steps of 32 deviations to 1/127 of one


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(DTYPES),
    shape=st.tuples(st.integers(1, 7), st.integers(1, 4)),
    ratio=ratios,
    refine=st.sampled_from([(0, 0), (1, 1), (3, 2), (9, 4)]),
    log_variance=st.sampled_from([None, None, 0, 12000, 16256, 20000, 32639]),
)
def test_the_definition_in_exact_arithmetic(quick, seed, kind, dtype, shape, ratio, refine, log_variance):
    rng = np.random.default_rng(seed)
    block = make(kind, rng, dtype, shape)
    refined, bits = refine
    found = quantize(
        block[None],
        ratio,
        log_variances=None if log_variance is None else np.array([log_variance]),
        refined_tokens=refined,
        refine_bits=bits,
        backend=quick,
    )
    expected = slow_quantize(block, ratio, log_variance, refined, bits)
    assert found.usable.tolist() == [expected is not None]
    if expected is None:
        return
    refinements = [] if found.refinements is None else found.refinements[0].tolist()
    got = (
        found.exponents[0].tolist(),
        int(found.inverses[0]),
        found.offsets[0].tolist(),
        found.symbols[0].tolist(),
        refinements,
    )
    assert got == expected
    gains = rng.integers(0, 257, (1, shape[1])).astype(np.uint16)
    back = dequantize(found, dtype, gains, refine_bits=bits, backend=quick)[0]
    assert back.dtype == dtype
    for row, exact in zip(back.tolist(), slow_dequantize(expected, gains[0], bits, np.dtype(dtype).name), strict=True):
        for value, wanted in zip(row, exact, strict=True):
            assert math.isinf(value) if wanted is None else Fraction(float(value)) == wanted


# One compilation serves all kinds and seeds.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "refine", "given"), [((34, 70), (4, 2), False), ((5, 1), (0, 0), True)])
def test_backends_agree_bit_for_bit(other, dtype, shape, refine, given):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        blocks = np.stack([make(kind, rng, dtype, shape) for kind in KINDS])
        logs = rng.integers(14000, 18000, len(KINDS)) if given else None
        options = {"log_variances": logs, "refined_tokens": refine[0], "refine_bits": refine[1]}
        ratio = int(rng.integers(0x3D00, 0x42FF))
        ours, theirs = quantize(blocks, ratio, **options), quantize(blocks, ratio, **options, backend=other)
        assert ours.usable[KINDS.index("zero")]
        assert not ours.usable[KINDS.index("nan")]
        assert np.array_equal(ours.usable, theirs.usable)
        for name in FIELDS:
            mine, its = getattr(ours, name), getattr(theirs, name)
            assert (mine is None) == (its is None)
            if mine is not None:
                assert mine.dtype == its.dtype
                assert np.array_equal(mine[ours.usable], its[ours.usable]), (name, seed)
        gains = rng.integers(0, 257, blocks.shape[::2]).astype(np.uint16)
        back = dequantize(ours, dtype, gains, refine_bits=refine[1])
        again = dequantize(ours, dtype, gains, refine_bits=refine[1], backend=other)
        assert again.dtype == back.dtype
        assert again.tobytes() == back.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_error_is_at_most_half_a_step_and_less_where_refined(dtype):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((1, 64, 32)) + rng.standard_normal((1, 1, 32)) * 20).astype(dtype)
    found = quantize(x, 0x4080, refined_tokens=8, refine_bits=4)  # four steps a deviation
    assert found.exponents.max() == 0
    step = 1 / float(value_of(int(found.inverses[0])))
    error = np.abs(dequantize(found, dtype, refine_bits=4).astype(np.float64) - x.astype(np.float64))
    rounding = np.abs(x.astype(np.float64)) * float(ml_dtypes.finfo(dtype).eps)
    assert np.all(error[0, 8:] <= (step / 2 * 1.0001 + rounding)[0, 8:])
    assert np.all(error[0, :8] <= (step / 32 * 1.0001 + rounding)[0, :8])


def test_a_constant_channel_comes_back_as_it_is_next_to_a_wild_one():
    x = np.random.default_rng(1).standard_normal((1, 300, 2)).astype(np.float32)
    x[..., 1] = 7
    found = quantize(x, 0x4000)
    assert found.usable[0]
    assert not found.symbols[..., 1].any()
    step = 1 / float(value_of(int(found.inverses[0])))
    assert abs(float(dequantize(found, np.float32)[0, 0, 1]) - 7) <= step / 2


def test_scales_that_no_encoder_writes(backend):
    found = quantize(np.ones((1, 2, 3), np.float32), 0x4000)
    parts = {name: getattr(found, name) for name in FIELDS}
    for name, value in [("exponents", 17), ("inverses", 0), ("inverses", 0x7F80), ("inverses", 0xBF80)]:
        wrong = parts | {name: np.full_like(parts[name], value)}
        with pytest.raises(CorruptStreamError, match="exponent" if name == "exponents" else "inverse"):
            dequantize(Uniform(**wrong), np.float32, backend=backend)


def test_wrong_arguments():
    x = np.ones((2, 4, 3), np.float32)
    with pytest.raises(ValueError, match="float64"):
        quantize(x.astype(np.float64), 0x4000)
    with pytest.raises(ValueError, match="tokens"):
        quantize(x[:, :0], 0x4000)
    with pytest.raises(ValueError, match="channels"):
        quantize(x[:, :, :0], 0x4000)
    with pytest.raises(ValueError, match="ratio"):
        quantize(x, -1)
    with pytest.raises(ValueError, match="log variances"):
        quantize(x, 0x4000, log_variances=np.array([1]))
    with pytest.raises(ValueError, match="log variances"):
        quantize(x, 0x4000, log_variances=np.array([1, -1]))
    for refined, bits in [(1, 0), (0, 2), (2, 3), (-1, 1)]:
        with pytest.raises(ValueError, match="refinement takes"):
            quantize(x, 0x4000, refined_tokens=refined, refine_bits=bits)
    with pytest.raises(ValueError, match="float64"):
        dequantize(quantize(x, 0x4000), np.float64)
