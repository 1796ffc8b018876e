"""The numba backend: the bytes of the numpy reference for every kind of block, and safety against damage."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmcache_kit_kernels import CorruptStreamError
from lmcache_kit_kernels.blocks import Coded, Quantized, Settings, decode, dequantize, encode, quantize
from lmcache_kit_kernels.tables import TableSet, builtin_tables

pytest.importorskip("numba", reason="the numba backend needs numba")

from lmcache_kit_kernels.blocks import numba_quantize, numba_rans, numba_statistics

DTYPES = [ml_dtypes.bfloat16, np.float16, np.float32]
BFLOAT16_TWO = 0x4000
KINDS = ["normal", "outliers", "random bits", "zeros and constants", "ties", "correlated"]


def make(kind, seed, shape, dtype):
    rng = np.random.default_rng(seed)
    blocks, tokens, channels = shape
    if kind == "random bits":  # NaN of any payload, infinities, denormals, both zeros
        bits = rng.integers(0, 256, size=(*shape, np.dtype(dtype).itemsize), dtype=np.uint8)
        return np.ascontiguousarray(bits).view(dtype).reshape(shape)
    values = rng.standard_normal(shape) * np.exp2(rng.integers(-3, 3, (blocks, 1, channels)))
    if kind == "normal":
        values += rng.standard_normal((blocks, 1, channels)) * 4
    if kind == "outliers":
        values *= np.exp2(rng.integers(-4, 11, (blocks, tokens, 1)))
    if kind == "zeros and constants":
        values *= rng.random((blocks, 1, channels)) < 0.5
        values += rng.integers(-2, 3, (blocks, 1, channels))
        values[: blocks // 2] = 0
        values[0, rng.random((tokens, channels)) < 0.2] = -0.0
    if kind == "ties":
        values = np.rint(values * 4) / 8
    if kind == "correlated":
        values = np.cumsum(values, axis=1) / 8
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def settings_for(quantizer, shape, **more):
    blocks = shape[0]
    if quantizer == "uniform":
        return Settings("uniform", (127,) * blocks, ratio=more.pop("ratio", BFLOAT16_TWO), **more)
    return Settings("lmcache", tuple((31, 15)[index % 2] for index in range(blocks)), **more)


def assert_same(ours, theirs, fields):
    """All arrays of usable blocks, and which blocks are usable."""
    assert np.array_equal(ours.usable, theirs.usable)
    for name in fields:
        one, other = getattr(ours, name), getattr(theirs, name)
        assert (one is None) == (other is None), name
        if one is None:
            continue
        assert one.dtype == other.dtype, name
        assert one.shape == other.shape, name
        if name != "words":
            one, other = one[ours.usable], other[ours.usable]
        assert one.tobytes() == other.tobytes(), name


def words_of_usable(coded):
    ends = np.cumsum(coded.counts.sum(axis=1, dtype=np.int64))
    return [run.tolist() for run, usable in zip(np.split(coded.words, ends), coded.usable, strict=False) if usable]


def check(x, chosen):
    """Both backends agree on everything; returns whether any block was usable."""
    ours, theirs = quantize(x, chosen, backend="numba"), quantize(x, chosen)
    assert_same(ours, theirs, Quantized.__slots__)
    coded, expected = encode(x, chosen, backend="numba"), encode(x, chosen)
    assert_same(coded, expected, [name for name in Coded.__slots__ if name != "words"])
    assert words_of_usable(coded) == words_of_usable(expected)
    values = decode(coded, chosen, x.dtype, backend="numba")
    plain = decode(coded, chosen, x.dtype)
    assert values.dtype == x.dtype
    assert values[ours.usable].tobytes() == plain[ours.usable].tobytes()
    gains = None
    if chosen.quantizer == "uniform":
        gains = np.random.default_rng(0).integers(0, 257, (x.shape[0], x.shape[2])).astype(np.uint16)
    for some in (None, gains):
        back = dequantize(ours, chosen, x.dtype, some, backend="numba")
        assert back[ours.usable].tobytes() == dequantize(theirs, chosen, x.dtype, some)[ours.usable].tobytes()
    return bool(ours.usable.any())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quantizer", ["lmcache", "uniform"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_block_gives_the_bytes_of_the_reference(kind, quantizer, dtype):
    shape = (4, 37, 72)
    usable = check(make(kind, 1, shape, dtype), settings_for(quantizer, shape, fold=2))
    assert usable or kind in ("random bits", "outliers")


@pytest.mark.parametrize("quantizer", ["lmcache", "uniform"])
@pytest.mark.parametrize(
    ("shape", "fold", "group"),
    [
        ((1, 1, 1), 1, 32),
        ((3, 1, 40), 8, 32),
        ((2, 300, 1), 1, 32),
        ((2, 5, 96), 4, 7),
        ((3, 16, 64), 2, 32),
        ((2, 9, 130), 1, 32),
        ((2, 12, 33), 1, 1),
        ((1, 20, 64), 1, 1000),
    ],
)
def test_shapes_folds_and_groups(shape, fold, group, quantizer):
    check(make("normal", 2, shape, ml_dtypes.bfloat16), settings_for(quantizer, shape, fold=fold, group=group))


@pytest.mark.parametrize("anchors", [1, 2, 10, 11, 12, 13, 100])
@pytest.mark.parametrize("quantizer", ["lmcache", "uniform"])
def test_anchors(quantizer, anchors):
    shape = (2, 12, 64)
    x = make("correlated", 8, shape, np.float32)
    x[:, :, ::2] = make("normal", 9, shape, np.float32)[:, :, ::2]
    chosen = settings_for(quantizer, shape, anchor_group=anchors)
    assert check(x, chosen)
    assert encode(x, chosen, backend="numba").flags.any() == (anchors > 1)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(KINDS),
    quantizer=st.sampled_from(["lmcache", "uniform"]),
    dtype=st.sampled_from(DTYPES),
    lanes=st.integers(1, 70),
    fold=st.sampled_from([1, 2, 8]),
    tokens=st.integers(1, 40),
    group=st.sampled_from([32, 32, 5]),
    anchors=st.sampled_from([0, 0, 1, 3, 10]),
    refinement=st.sampled_from([(0, 0), (4, 1), (1, 2), (100, 4)]),
    ratio=st.integers(0x3E00, 0x4200),
)
def test_any_combination(seed, kind, quantizer, dtype, lanes, fold, tokens, group, anchors, refinement, ratio):
    shape = (2, tokens, lanes * fold)
    more = {"fold": fold, "group": group, "anchor_group": anchors}
    if quantizer == "uniform":
        more |= {"ratio": ratio, "refined_tokens": refinement[0], "refine_bits": refinement[1]}
    check(make(kind, seed, shape, dtype), settings_for(quantizer, shape, **more))


def test_a_profile_gives_tables_gains_and_log_variances():
    plain = builtin_tables(127)
    fitted = TableSet(
        127, plain.frequencies[::-1][::-1], plain.thresholds // 2, plain.cover, plain.gains // 2, b"x" * 16
    )
    shape = (3, 40, 64)
    x = make("normal", 3, shape, np.float32)
    chosen = Settings("uniform", (127,) * 3, BFLOAT16_TWO, (0x3F80, 0x4000, 0x7F00), tables={127: fitted})
    assert check(x, chosen)
    assert not np.array_equal(
        encode(x, chosen, backend="numba").tables, encode(x, settings_for("uniform", shape)).tables
    )


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_conversions_are_numpys(kind):
    dtype = DTYPES[kind]
    bits = np.arange(1 << 16, dtype=np.uint32)
    every = (bits.astype(np.uint16) if kind < 2 else bits << np.uint32(16)).view(dtype)
    wide = np.empty(every.size, np.float32)
    numba_quantize._widen(every.view(np.uint8), kind, 0, wide)
    assert wide.tobytes() == every.astype(np.float32).tobytes()
    # Every pattern, its neighbours, and every point halfway between two float16 or bfloat16.
    around = [(bits << np.uint32(16)) + np.uint32(more) for more in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]
    halves = wide[np.isfinite(wide)].astype(np.float64)
    halfway = ((halves[1:] + halves[:-1]) / 2).astype(np.float32).view(np.uint32)
    row = np.concatenate([*around, halfway, halfway + np.uint32(1), halfway - np.uint32(1)]).view(np.float32)
    got = np.empty(row.size, dtype)
    numba_quantize._narrow(row, got.view(np.uint8), kind, 0)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = row.astype(dtype)
    assert np.array_equal(np.isnan(got), np.isnan(expected))
    number = ~np.isnan(expected)
    assert got[number].tobytes() == expected[number].tobytes()


def test_division_by_multiplication_is_exact():
    """Of the largest states, and of those around multiples, for every frequency."""
    for f in range(1, 1024):
        (entry, _) = numba_rans.entries_of(np.array([[f, 1024 - f]], np.uint16))[0].tolist()
        assert (entry & 1023, entry >> 10 & 1023) == (f, 0)
        top = f << 22
        for x in {1 << 16, f - 1, top // 3 // f * f, top // 3 // f * f - 1, top - f, top - f - 1, top - 1}:
            product = x * (entry >> 20)
            assert product < 1 << 64
            assert product >> 42 == x // f


def damaged(rng, coded):
    name = str(rng.choice(["states", "counts", "words", "tables"]))
    array = getattr(coded, name).copy()
    place = tuple(rng.integers(0, size) for size in array.shape)
    array[place] ^= array.dtype.type(1 << int(rng.integers(0, 5 if name == "tables" else 8 * array.itemsize)))
    return dataclasses.replace(coded, **{name: array})


@pytest.mark.parametrize("quantizer", ["lmcache", "uniform"])
@pytest.mark.parametrize("fold", [1, 4])
def test_damage_is_refused_as_the_reference_refuses_it(quantizer, fold):
    shape = (2, 30, 160)
    chosen = settings_for(quantizer, shape, fold=fold)
    coded = encode(make("normal", 4, shape, np.float16), chosen, backend="numba")
    rng = np.random.default_rng(5)
    refused = 0
    for _ in range(80):
        bad = damaged(rng, coded)
        results = []
        for backend in ("numba", "numpy"):
            try:
                results.append(decode(bad, chosen, np.float16, backend=backend).tobytes())
            except CorruptStreamError:
                results.append(None)
        assert results[0] == results[1]
        refused += results[0] is None
    assert refused >= 60


def test_random_words_are_refused_without_reading_beyond_them():
    rng = np.random.default_rng(6)
    shape = (1, 64, 64)
    chosen = settings_for("uniform", shape)
    coded = encode(make("normal", 5, shape, np.float16), chosen, backend="numba")
    for size in (0, 1, 31, 32, 1000):
        cut = min(size, 10)
        bad = dataclasses.replace(
            coded,
            states=rng.integers(1 << 16, 1 << 32, coded.states.shape, dtype=np.uint32),
            counts=np.array([[cut, size - cut]], np.uint32),
            words=rng.integers(0, 1 << 16, size).astype(np.uint16),
        )
        with pytest.raises(CorruptStreamError):
            decode(bad, chosen, np.float16, backend="numba")


IN_PYTHON = """
import dataclasses, sys
import numpy as np
from lmcache_kit_kernels import CorruptStreamError
from lmcache_kit_kernels.blocks import Settings, decode, encode
rng = np.random.default_rng(1)
x = rng.standard_normal((1, 6, 40)).astype(np.float16)
with np.errstate(over="ignore"):
    for chosen in (
        Settings("uniform", (127,), 0x4000, refined_tokens=2, refine_bits=2, anchor_group=3, fold=2),
        Settings("lmcache", (31,), anchor_group=3),
    ):
        coded = encode(x, chosen, backend="numba")
        expected = encode(x, chosen)
        assert coded.words.tolist() == expected.words.tolist()
        assert decode(coded, chosen, x.dtype, backend="numba").tobytes() == decode(coded, chosen, x.dtype).tobytes()
        for _ in range(30):
            words = rng.integers(0, 65536, coded.words.size).astype(np.uint16)
            states = rng.integers(1 << 16, 1 << 32, coded.states.shape, dtype=np.uint32)
            bad = dataclasses.replace(coded, words=words, states=states)
            try:
                decode(bad, chosen, x.dtype, backend="numba")
            except CorruptStreamError:
                continue
            raise SystemExit("random words were taken")
print("done")
"""


def test_no_index_leaves_its_array():
    """The same loops as plain Python, where numpy checks every index."""
    environment = {"NUMBA_DISABLE_JIT": "1", "PATH": ""}
    result = subprocess.run(
        [sys.executable, "-c", IN_PYTHON], env=environment, capture_output=True, text=True, check=False
    )
    assert (result.stdout.strip(), result.returncode) == ("done", 0), result.stderr


def test_inputs_of_every_layout_share_one_compilation():
    shape = (2, 12, 64)
    x = make("normal", 7, shape, np.float16)
    chosen = settings_for("uniform", shape)
    expected = encode(x, chosen)
    frozen = x.copy()
    frozen.setflags(write=False)
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float16).reshape(shape)
    strided = np.ascontiguousarray(x.transpose(1, 2, 0)).transpose(2, 0, 1)
    for spelling in (x, frozen, unaligned, strided, np.repeat(x, 2, axis=0)[::2], x.astype(np.float32).astype(x.dtype)):
        coded = encode(spelling, chosen, backend="numba")
        assert coded.words.tobytes() == expected.words.tobytes()
        words = np.frombuffer(b"\0" + coded.words.tobytes(), np.uint8)[1:].view(np.uint16)
        odd = dataclasses.replace(coded, words=words, states=np.asfortranarray(coded.states))
        assert decode(odd, chosen, x.dtype, backend="numba").tobytes() == decode(coded, chosen, x.dtype).tobytes()
    for module in (numba_quantize, numba_rans, numba_statistics):
        for name in module.__all__:
            function = getattr(module, name)
            assert len(getattr(function, "signatures", ())) <= 1, name


def test_calls_from_many_threads_at_once():
    shape = (6, 40, 64)
    inputs = [make("normal", seed, shape, np.float32) for seed in range(8)]
    chosen = settings_for("uniform", shape)
    with ThreadPoolExecutor(8) as pool:
        coded = list(pool.map(lambda x: encode(x, chosen, backend="numba"), inputs))
        values = list(pool.map(lambda c: decode(c, chosen, np.float32, backend="numba"), coded))
    for x, one, value in zip(inputs, coded, values, strict=True):
        assert one.words.tobytes() == encode(x, chosen).words.tobytes()
        assert value.tobytes() == decode(one, chosen, np.float32).tobytes()
