"""Whole blocks: one set of bytes from every backend, exact round trips, and damage of every kind."""

from __future__ import annotations

import dataclasses
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmcache_kit_kernels import CorruptStreamError, UnknownBackendError, rans
from lmcache_kit_kernels.blocks import Coded, Quantized, Settings, decode, dequantize, encode, quantize
from lmcache_kit_kernels.tables import NUM_TABLES, builtin_tables

OPERATION = "blocks"

DTYPES = [ml_dtypes.bfloat16, np.float16, np.float32]
TWO = 0x4000  # a step of half a deviation

KINDS = ["normal", "offsets", "outlier", "constant", "zero", "correlated", "largest", "denormal", "nan", "infinity"]
# What neither quantizer, or only one, can take, for dtypes with the exponents of float32.
UNUSABLE = {"nan": ("lmcache", "uniform"), "infinity": ("lmcache", "uniform"), "largest": ("uniform",)}
UNUSABLE_DENORMAL = ("lmcache", "uniform")


def make(kind, rng, dtype, shape):
    x = rng.standard_normal(shape) * np.exp2(rng.integers(-3, 4, (1, shape[1])))
    place = rng.integers(shape[0]), rng.integers(shape[1])
    if kind == "offsets":
        x += rng.standard_normal((1, shape[1])) * 100
    elif kind == "outlier":
        largest = float(ml_dtypes.finfo(dtype).max)
        x[place] = np.clip(x[place] * 3000, -largest, largest)
    elif kind == "constant":
        x[:] = x[:1]
    elif kind == "zero":
        x[:] = rng.choice([0.0, -0.0], shape)
    elif kind == "correlated":
        x = np.cumsum(x, axis=0) / 4
    elif kind == "largest":
        x[place] = ml_dtypes.finfo(dtype).max
    elif kind == "denormal":
        x[:] = rng.integers(1, 4, shape) * float(ml_dtypes.finfo(dtype).smallest_subnormal)
    elif kind in ("nan", "infinity"):
        x[place] = np.nan if kind == "nan" else -np.inf
    return x.astype(dtype)


def make_all(seed, dtype, shape):
    rng = np.random.default_rng(seed)
    return np.stack([make(kind, rng, dtype, shape) for kind in KINDS])


def usable_kinds(quantizer, dtype):
    def fits(kind):
        if dtype == np.float16:  # its largest and smallest numbers are ordinary ones
            return kind not in ("nan", "infinity")
        return quantizer not in (UNUSABLE_DENORMAL if kind == "denormal" else UNUSABLE.get(kind, ()))

    return [fits(kind) for kind in KINDS]


def mixed(blocks, **more):
    return Settings("lmcache", tuple((31, 15, 15)[index % 3] for index in range(blocks)), **more)


def uniform(blocks, **more):
    return Settings("uniform", (127,) * blocks, ratio=TWO, **more)


def gains_of(coded, options):
    return None if options.quantizer == "lmcache" else options.tables[127].gains[coded.tables]


def assert_same(ours, theirs):
    """The same arrays for usable blocks, words and all."""
    assert np.array_equal(ours.usable, theirs.usable)
    for field in dataclasses.fields(ours):
        mine, its = getattr(ours, field.name), getattr(theirs, field.name)
        assert (mine is None) == (its is None), field.name
        if mine is None:
            continue
        if field.name == "words":
            mine, its = (np.concatenate(runs_of(coded)) for coded in (ours, theirs))
        else:
            assert mine.shape == its.shape, field.name
            mine, its = mine[ours.usable], its[theirs.usable]
        assert mine.dtype == its.dtype, field.name
        assert mine.tobytes() == its.tobytes(), field.name


def runs_of(coded):
    """Words of the usable blocks."""
    ends = np.cumsum(coded.counts.sum(axis=1, dtype=np.int64))
    runs = np.split(coded.words, ends[:-1])
    return [np.zeros(0, np.uint16), *(run for run, usable in zip(runs, coded.usable, strict=True) if usable)]


COUNT = len(KINDS)
# A few settings and shapes for the backends that compile for each.
CASES = {
    "lmcache": (ml_dtypes.bfloat16, (33, 64), mixed(COUNT)),
    "lmcache in deltas and folds": (np.float16, (34, 40), mixed(COUNT, anchor_group=10, fold=4)),
    "lmcache of float32, four channels a lane": (np.float32, (2, 148), Settings("lmcache", (31,) * COUNT, fold=4)),
    "uniform, refined": (ml_dtypes.bfloat16, (33, 64), uniform(COUNT, refined_tokens=4, refine_bits=4, fold=2)),
    "uniform in deltas": (np.float16, (34, 40), uniform(COUNT, anchor_group=10, group=8)),
    "uniform of float32 with a profile": (
        np.float32,
        (5, 129),  # one more than the lanes of a program on a GPU
        uniform(COUNT, log_variances=tuple(range(15600, 15600 + 128 * COUNT, 128)), refined_tokens=9, refine_bits=1),
    ),
    "uniform, one value": (ml_dtypes.bfloat16, (1, 1), uniform(COUNT)),
}


@pytest.mark.parametrize("case", CASES)
def test_every_backend_gives_the_same_bytes_and_values(backend, case):
    dtype, shape, options = CASES[case]
    for seed in range(2):
        x = make_all(seed, dtype, shape)
        expected, coded = encode(x, options), encode(x, options, backend=backend)
        assert_same(expected, coded)
        plain = quantize(x, options)
        assert_same(plain, quantize(x, options, backend=backend))
        usable = plain.usable
        back = decode(expected, options, dtype, backend=backend)
        assert back.dtype == dtype
        values = dequantize(plain, options, dtype, gains_of(expected, options))
        assert back[usable].tobytes() == values[usable].tobytes()
        again = dequantize(plain, options, dtype, gains_of(expected, options), backend=backend)
        assert again[usable].tobytes() == values[usable].tobytes()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(DTYPES),
    tokens=st.integers(1, 45),
    lanes=st.integers(1, 40),
    fold=st.sampled_from([1, 2, 4]),
    group=st.sampled_from([1, 7, 32]),
    anchor_group=st.sampled_from([0, 1, 10]),
    refine=st.sampled_from([None, (0, 0), (4, 1), (100, 4)]),
)
def test_decoding_gives_what_quantizing_gives_for_any_shape(
    quick, seed, dtype, tokens, lanes, fold, group, anchor_group, refine
):
    more = {"fold": fold, "group": group, "anchor_group": anchor_group}
    if refine is None:
        options = mixed(COUNT, **more)
    else:
        options = uniform(COUNT, refined_tokens=refine[0], refine_bits=refine[1], **more)
    x = make_all(seed, dtype, (tokens, lanes * fold))
    coded = encode(x, options, backend=quick)
    usable = coded.usable
    if tokens * lanes * fold > 1:  # a lone value makes its own mean
        assert usable.tolist() == usable_kinds(options.quantizer, dtype)
    values = dequantize(quantize(x, options), options, dtype, gains_of(coded, options))
    back = decode(coded, options, dtype, backend=quick)
    assert back[usable].tobytes() == values[usable].tobytes()


def test_blocks_are_coded_the_same_alone_and_together(quick):
    x = make_all(3, ml_dtypes.bfloat16, (40, 64))
    for options in (mixed(COUNT), uniform(COUNT)):
        together = encode(x, options, backend=quick)
        usable = [i for i in range(COUNT) if together.usable[i]]
        for run, i in zip(runs_of(together)[1:], usable, strict=True):
            alone = encode(x[i : i + 1], dataclasses.replace(options, levels=options.levels[i : i + 1]), backend=quick)
            assert np.array_equal(alone.words, run)
            assert np.array_equal(alone.states[0], together.states[i])


def test_size_is_close_to_the_entropy_under_the_tables(quick):
    rng = np.random.default_rng(0)
    deviations = np.exp2(rng.uniform(-2, 2, (1, 1, 256)))
    x = (rng.standard_normal((2, 256, 256)) * deviations).astype(ml_dtypes.bfloat16)
    for options in (mixed(2, fold=2), uniform(2, fold=2)):
        coded = encode(x, options, backend=quick)
        symbols = quantize(x, options).symbols.astype(int)
        bits = 0.0
        for block, levels in enumerate(options.levels):
            centre = coded.centres[block].astype(int) if options.quantizer == "lmcache" else 0
            shares = options.tables[levels].frequencies[coded.tables[block], (symbols[block] - centre) % levels] / 1024
            bits -= np.log2(shares).sum()
        spent = 16 * coded.words.size + 32 * coded.states.size
        assert bits <= spent <= 1.03 * bits
        if options.quantizer == "uniform":
            # And the tables are not far from the best there could be: the distributions that x was drawn from.
            steps = 1 / (deviations * coded.inverses.view(ml_dtypes.bfloat16).astype(float)[:, None, None])
            borders = np.arange(-63.5, 64)
            below = np.vectorize(lambda z: math.erf(z / math.sqrt(2)) / 2)(borders * steps[:1, 0, :, None])
            signed = np.where(symbols > 63, symbols - 127, symbols)
            cells = np.maximum(np.diff(below)[0, np.arange(256), signed + 63], 1e-12)
            assert bits <= -np.log2(cells).sum() * 1.02


# One shape, one compilation; 64 lanes in two groups.
DAMAGED = {
    "lmcache": (ml_dtypes.bfloat16, (40, 64), Settings("lmcache", (31, 31), anchor_group=10)),
    "uniform": (ml_dtypes.bfloat16, (40, 64), uniform(2, refined_tokens=2, refine_bits=2)),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_refused_or_gives_other_values(backend, case):
    dtype, shape, options = DAMAGED[case]
    rng = np.random.default_rng(1)
    x = np.stack([make("normal", rng, dtype, shape), make("offsets", rng, dtype, shape)])
    coded = encode(x, options)
    refused = {}
    for name in ("states", "counts", "words", "tables", "centres", "scales", "inverses"):
        for _ in range(20 if backend != "pallas_interpret" else 4):
            array = getattr(coded, name).copy()
            bits = array.view(f"u{array.itemsize}")
            place = tuple(rng.integers(0, size) for size in array.shape)
            bits[place] ^= bits.dtype.type(1 << int(rng.integers(0, 8 * array.itemsize)))
            try:
                back = decode(dataclasses.replace(coded, **{name: array}), options, dtype, backend=backend)
            except CorruptStreamError:
                refused[name] = refused.get(name, 0) + 1
            else:
                assert back.shape == x.shape
                assert back.dtype == dtype
    assert refused["counts"] == (20 if backend != "pallas_interpret" else 4)
    assert refused["words"] > 0
    assert refused["states"] > 0


def test_random_arrays_are_refused_or_decode_to_something(backend):
    """Numbers in range, but nothing an encoder wrote."""
    rng = np.random.default_rng(2)
    options = uniform(2)
    for _ in range(20 if backend != "pallas_interpret" else 3):
        counts = rng.integers(0, 700, (2, 2)).astype(np.uint32)
        counts[0, 0] += 5000 - counts.sum()
        coded = Coded(
            rng.integers(0, 17, (2, 40)).astype(np.uint8),
            rng.integers(0x0D80, 0x7181, 2).astype(np.uint16),
            rng.integers(-(2**15), 2**15, (2, 64)).astype(np.int16),
            rng.integers(0, NUM_TABLES, (2, 64)).astype(np.uint8),
            None,
            None,
            rng.integers(2**16, 2**32, (2, 64)).astype(np.uint32),
            counts,
            rng.integers(0, 2**16, 5000).astype(np.uint16),
            np.ones(2, bool),
        )
        with pytest.raises(CorruptStreamError):
            decode(coded, options, np.float32, backend=backend)


def test_numbers_out_of_range_are_refused(backend):
    dtype, shape, options = DAMAGED["uniform"]
    coded = encode(np.stack([make("normal", np.random.default_rng(3), dtype, shape)] * 2), options)
    for name, value in [
        ("scales", 17),
        ("inverses", 0),
        ("inverses", 0x7F80),
        ("tables", NUM_TABLES),
        ("refinements", 4),
        ("states", 2**16 - 1),
        ("counts", 2**32 - 1),
    ]:
        array = getattr(coded, name).copy()
        array.reshape(-1)[-1] = value
        with pytest.raises(CorruptStreamError):
            decode(dataclasses.replace(coded, **{name: array}), options, dtype, backend=backend)
    with pytest.raises(CorruptStreamError, match="add up"):
        decode(dataclasses.replace(coded, words=coded.words[:-1]), options, dtype, backend=backend)
    plain = quantize(np.ones((1, 2, 3), np.float32), Settings("lmcache", (15,)))
    with pytest.raises(CorruptStreamError, match="below its block's levels"):
        dequantize(
            dataclasses.replace(plain, symbols=plain.symbols + np.uint8(8)),
            Settings("lmcache", (15,)),
            np.float32,
            backend=backend,
        )
    _, shape, options = DAMAGED["lmcache"]
    coded = encode(np.ones((2, *shape), dtype), options)
    with pytest.raises(CorruptStreamError, match="centre"):
        decode(dataclasses.replace(coded, centres=coded.centres + np.uint8(1)), options, dtype, backend=backend)


@pytest.mark.parametrize("name", ["scales", "inverses", "centres", "tables", "refinements", "states", "counts"])
def test_arrays_that_do_not_fit_together(name):
    dtype, shape, options = DAMAGED["uniform"]
    coded = encode(np.zeros((2, *shape), dtype), options)
    array = getattr(coded, name)
    for wrong in (array[:1], array.astype(np.int64), array[..., :-1]):
        if name == "scales" and wrong.shape[0] == 2 and wrong.dtype == array.dtype:
            continue  # one token fewer is another stream, not another shape
        if name == "centres" and wrong.shape[0] == 2 and wrong.dtype == array.dtype:
            continue
        with pytest.raises((ValueError, CorruptStreamError)):
            decode(dataclasses.replace(coded, **{name: wrong}), options, dtype)
    with pytest.raises(ValueError, match="come together"):
        decode(dataclasses.replace(coded, refinements=None), options, dtype)
    with pytest.raises(ValueError, match="come together"):
        decode(dataclasses.replace(coded, flags=np.zeros((2, 64), bool)), options, dtype)


def test_settings_that_contradict_each_other():
    for wrong, match in [
        ({"levels": (63,)}, "15 or 31"),
        ({"levels": ()}, "at least one block"),
        ({"quantizer": "paper"}, "lmcache or uniform"),
        ({"ratio": 5}, "belong to the uniform"),
        ({"refined_tokens": 4, "refine_bits": 2}, "belong to the uniform"),
        ({"quantizer": "uniform"}, "127 levels"),
        ({"quantizer": "uniform", "levels": (127,), "log_variances": (1, 2)}, "2 log variances"),
        ({"quantizer": "uniform", "levels": (127,), "refined_tokens": 4}, "refinement takes"),
        ({"tables": {31: builtin_tables(15)}}, "no table set"),
        ({"fold": 0}, "at least 1"),
    ]:
        with pytest.raises(ValueError, match=match):
            Settings(**({"quantizer": "lmcache", "levels": (31,)} | wrong))


def test_wrong_arguments():
    x = np.ones((2, 4, 6), np.float32)
    with pytest.raises(ValueError, match="does not divide 6"):
        encode(x, mixed(2, fold=4))
    with pytest.raises(ValueError, match="3 numbers of levels for 2"):
        encode(x, mixed(3))
    with pytest.raises(ValueError, match="float64"):
        encode(x.astype(np.float64), mixed(2))
    with pytest.raises(ValueError, match="tokens"):
        encode(x[:, :0], mixed(2))
    with pytest.raises(UnknownBackendError, match="numpy"):
        encode(x, mixed(2), backend="cuda")
    plain = quantize(x, mixed(2))
    with pytest.raises(ValueError, match="gains"):
        dequantize(plain, mixed(2), np.float32, np.zeros((2, 6), np.uint16))
    with pytest.raises(ValueError, match="do not fit"):
        dequantize(plain, mixed(2), np.float16)
    assert isinstance(plain, Quantized)
    assert mixed(2).group == rans.GROUP_LANES
