"""The method: what decoding returns, for every shape, dtype, level and kind of value."""

from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lmcache_kit_cachegen.container import head_size, read_directory
from lmcache_kit_cachegen.header import Mode
from lmcache_kit_cachegen.levels import LEVELS, lmcache_levels
from lmcache_kit_cachegen.method import CacheGen, fold_of
from lmcache_kit_cachegen.options import CacheGenOptions
from lmcache_kit_kernels import blocks as kernel
from lmcache_kit_kernels.tables import builtin_tables

from lmcache_kit.errors import BlobError, InvalidRequestError
from lmcache_kit.kv.layout import KVLayout, KVTensor

DTYPES = ("bfloat16", "float16", "float32")
VARIANTS = {
    "lmcache": {"quantizer": "lmcache"},
    "lmcache with anchors": {"quantizer": "lmcache", "anchor_delta": True},
    **{f"level {level}": {"level": level} for level in LEVELS},
    "anchors": {"anchor_delta": True, "sink_tokens": 0},
    "level 2 with anchors": {"level": 2, "anchor_delta": True},
    "compiled": {"level": 6, "backend": "numba"},
    "many sinks": {"sink_tokens": 33},
}


def codec(**options) -> CacheGen:
    return CacheGen(CacheGenOptions(**{"backend": "numpy"} | options))


METHODS = {name: codec(**options) for name, options in VARIANTS.items()}
any_variant = st.sampled_from(sorted(VARIANTS))


def normal(layout, num_tokens, seed=0):
    """Tokens of differing size, channels of differing mean and spread: what KV looks like."""
    rng = np.random.default_rng(seed)
    layers, planes, tokens, heads, dim = layout.shape(num_tokens)
    data = rng.standard_normal((layers, planes, tokens, heads, dim))
    data *= np.exp(rng.standard_normal((layers, planes, 1, heads, dim)) / 2)
    data += rng.standard_normal((layers, planes, 1, heads, dim))
    data *= np.exp2(rng.integers(-3, 3, (layers, planes, tokens, 1, 1)))
    return KVTensor(layout, data.astype(layout.np_dtype))


def is_zero(block):
    size = block.itemsize
    return not any(set(block.tobytes()[place::size]) - {0, 0x80 if place == size - 1 else 0} for place in range(size))


def blocks_of(kv):
    layout = kv.layout
    return kv.data.reshape(layout.num_layers * layout.planes, kv.num_tokens, layout.num_kv_heads * layout.head_dim)


def quantized(kv, method):
    """What decoding must return where a block is packed, and where it is coded, and which blocks can be quantized."""
    layout, options = kv.layout, method.options
    blocks = blocks_of(kv)
    if kv.num_tokens == 0:
        return blocks, lambda tables: blocks, np.zeros(len(blocks), bool)
    if options.quantizer == "lmcache":
        setting = kernel.Settings(quantizer="lmcache", levels=lmcache_levels(layout.num_layers, layout.planes))
    else:
        level = LEVELS[options.effective_level]
        refined = kv.num_tokens if level.refine_all else 4 if options.sink_tokens is None else options.sink_tokens
        refined = min(refined, kv.num_tokens)
        setting = kernel.Settings(
            quantizer="uniform",
            levels=(127,) * len(blocks),
            ratio=level.ratio,
            refined_tokens=refined,
            refine_bits=level.refine_bits if refined else 0,
        )
    found = kernel.quantize(blocks, setting)
    return kernel.dequantize(found, setting, blocks.dtype), found, setting


def assert_same(got, want):
    """Equal bit for bit, except that a zero may have lost its sign."""
    assert got.dtype == want.dtype
    unsigned = f"u{want.itemsize}"
    different = got.view(unsigned) != want.view(unsigned)
    assert np.all((got[different] == 0) & (want[different] == 0))


def round_trip(kv, method):
    payload = method.encode(kv)
    return payload, method.decode(memoryview(payload), kv.layout, kv.num_tokens, method.version)


def tables_of(payload, kv, index):
    """The table numbers of a coded block, read out of the payload."""
    directory = read_directory(memoryview(payload), kv.layout, kv.num_tokens)
    header, entry = directory.header, directory.entries[index]
    from lmcache_kit_cachegen.sections import read_fixed

    fixed = np.frombuffer(payload, np.uint8)[entry.fixed_start : entry.fixed_start + entry.fixed_bytes]
    return read_fixed(header, entry.mode, entry.levels, fixed[None])["tables"][0]


def check(kv, method):
    before = kv.data.tobytes()
    payload, decoded = round_trip(kv, method)
    assert kv.data.tobytes() == before
    got, blocks = blocks_of(decoded), blocks_of(kv)
    directory = read_directory(memoryview(payload), kv.layout, kv.num_tokens)
    # Header, directory, and blocks that never take more than their raw values, filled up to whole words.
    raw = sum(-(-block.nbytes // 4) * 4 for block in blocks)
    assert len(payload) <= head_size(kv.layout) + raw
    plain, found, setting = quantized(kv, method)
    nonzero = [not is_zero(block) for block in blocks]
    for index, entry in enumerate(directory.entries):
        if entry.mode is Mode.ZERO:
            assert not got[index].any()
            assert not nonzero[index]
            continue
        assert nonzero[index] or kv.num_tokens == 0
        if entry.mode is Mode.VERBATIM:
            assert got[index].tobytes() == blocks[index].tobytes()
            continue
        assert found.usable[index]
        want = plain[index]
        if entry.mode is Mode.CODED and method.options.quantizer == "uniform":
            gains = np.repeat(builtin_tables(127).gains[tables_of(payload, kv, index)][None], len(blocks), axis=0)
            want = kernel.dequantize(found, setting, blocks.dtype, gains)[index]
        assert_same(got[index], want)
    layers = list(method.decode_layers(memoryview(payload), kv.layout, kv.num_tokens, 1))
    assert [layer.layout.num_layers for layer in layers] == [1] * kv.layout.num_layers
    assert b"".join(layer.data.tobytes() for layer in layers) == decoded.data.tobytes()
    return payload, [entry.mode for entry in directory.entries]


@settings(max_examples=60, deadline=None)
@given(
    layers=st.integers(1, 12),
    heads=st.integers(1, 4),
    head_dim=st.integers(1, 48),
    planes=st.sampled_from([1, 2]),
    tokens=st.integers(0, 70),
    dtype=st.sampled_from(DTYPES),
    variant=any_variant,
    seed=st.integers(0, 2**32),
)
@example(layers=1, heads=1, head_dim=1, planes=1, tokens=1, dtype="bfloat16", variant="level 4", seed=0)
@example(layers=1, heads=1, head_dim=2, planes=1, tokens=1, dtype="bfloat16", variant="lmcache", seed=0)
@example(layers=11, heads=1, head_dim=1, planes=2, tokens=64, dtype="float32", variant="level 1", seed=0)
@example(layers=2, heads=1, head_dim=1, planes=2, tokens=0, dtype="float16", variant="anchors", seed=0)
def test_decoding_gives_the_quantized_values(layers, heads, head_dim, planes, tokens, dtype, variant, seed):
    check(normal(KVLayout(layers, heads, head_dim, dtype, planes), tokens, seed), METHODS[variant])


@settings(max_examples=60, deadline=None)
@given(dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**32), tokens=st.integers(1, 20), variant=any_variant)
def test_any_bits_at_all(dtype, seed, tokens, variant):
    layout = KVLayout(3, 1, 6, dtype)
    kv = normal(layout, tokens, seed)
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, kv.data[1].nbytes, dtype=np.uint8).view(layout.np_dtype).reshape(kv.data[1].shape)
    kv.data[1] = raw  # the second layer holds NaN, infinities and denormals
    check(kv, METHODS[variant])
    _, decoded = round_trip(kv, METHODS[variant])
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(kv.data.astype(np.float64))
        assert np.isfinite(decoded.data.astype(np.float64)[finite]).all()


SPECIAL = {
    "zeros": 0.0,
    "minus zeros": -0.0,
    "constant": -1.5,
    "denormal": "smallest_subnormal",
    "small": "smallest_normal",
    "largest": "max",
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", ["lmcache", "level 2", "level 4", "anchors"])
@pytest.mark.parametrize("kind", [*SPECIAL, "outlier", "outlier token", "nan", "infinity"])
def test_special_values(dtype, kind, variant):
    layout = KVLayout(4, 1, 16, dtype)
    kv = normal(layout, 50)
    limits = ml_dtypes.finfo(layout.np_dtype)
    if kind == "outlier":
        kv.data[:, :, 7, 0, 3] = limits.max
    elif kind == "outlier token":
        kv.data[:, :, 7] *= 1000
    elif kind in ("nan", "infinity"):
        kv.data[3, 1, 20, 0, 5] = np.nan if kind == "nan" else -np.inf
    else:
        value = SPECIAL[kind]
        kv.data[:] = getattr(limits, value) if isinstance(value, str) else value
    payload, modes = check(kv, METHODS[variant])
    decoded = METHODS[variant].decode(memoryview(payload), layout, 50, 1).data.astype(np.float64)
    assert np.array_equal(np.isfinite(decoded), np.isfinite(kv.data.astype(np.float64)))
    if kind in ("zeros", "minus zeros"):
        assert not decoded.any()
    if kind in ("zeros", "minus zeros"):
        assert len(payload) == head_size(layout)
    if kind == "constant":
        assert len(payload) < kv.nbytes / 3 or variant == "level 2"
    if kind in ("nan", "infinity"):
        assert modes[-1] is Mode.VERBATIM
        assert Mode.VERBATIM not in modes[:-1]
    if kind == "outlier token":
        assert Mode.VERBATIM not in modes
        # The other tokens are no worse for it than the step, which is that of all of them, allows.
        assert np.abs(decoded - kv.data.astype(np.float64))[:, :, 8:].max() < np.abs(kv.data).max() / 20


@pytest.mark.parametrize(
    ("layout", "tokens", "variant"),
    [
        (KVLayout(2, 8, 128), 257, "level 4"),
        (KVLayout(1, 1, 576, planes=1), 300, "level 3"),
        (KVLayout(1, 1, 576, planes=1), 1, "level 1"),
        (KVLayout(1, 1, 3, "float16"), 8192, "level 2"),
        (KVLayout(1, 1, 3, "float16"), 8191, "anchors"),
        (KVLayout(1, 128, 128, planes=1), 3, "level 4"),
        (KVLayout(1, 128, 576, planes=1), 2, "level 5"),
        (KVLayout(128, 1, 2, "float32"), 5, "lmcache"),
    ],
    ids=["llama", "latent", "latent token", "long", "long anchors", "wide", "widest", "deep"],
)
def test_shapes_at_the_edges(layout, tokens, variant):
    check(normal(layout, tokens), METHODS[variant])


def test_the_longest_chunk():
    layout = KVLayout(1, 1, 2, planes=1)
    kv, method = normal(layout, 32768), METHODS["compiled"]
    bits, error = bits_and_error(kv, method)
    assert bits < 4
    assert error < 0.15


def test_what_is_too_large_is_refused_in_words():
    with pytest.raises(InvalidRequestError, match="at most 32768 tokens"):
        METHODS["level 4"].encode(KVTensor.empty(KVLayout(1, 1, 1), 32769))
    with pytest.raises(InvalidRequestError, match="at most 73728 channels"):
        METHODS["lmcache"].encode(KVTensor.empty(KVLayout(1, 2, 36865), 1))


@pytest.mark.parametrize(
    ("backend", "variant"),
    [
        ("numba", "lmcache"),
        ("numba", "lmcache with anchors"),
        ("numba", "level 1"),
        ("numba", "anchors"),
        ("xla", "anchors"),
    ],
)
def test_backends_write_the_same_bytes_and_read_each_other(backend, variant):
    if backend not in kernel_backends():
        pytest.skip(f"the kernels have no backend {backend} for whole blocks")
    kv = normal(KVLayout(2, 2, 24), 40)
    kv.data[1, 1, 3, 0, 0] = np.nan
    other = codec(**VARIANTS[variant], backend=backend)
    assert (other.backend, other.device) == (backend, "cpu")
    ours, values = round_trip(kv, METHODS[variant])
    theirs, other_values = round_trip(kv, other)
    assert ours == theirs
    assert values.data.tobytes() == other_values.data.tobytes()


def kernel_backends():
    from lmcache_kit_kernels import backends_of

    return backends_of("blocks")


def test_auto_is_the_compiled_loops_on_the_cpu():
    method = codec(backend="auto")
    assert (method.backend, method.device) == ("numba", "cpu")


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["lmcache", "level 1", "level 4", "anchors"])
def test_many_at_once_are_as_one_by_one(variant):
    method = METHODS[variant]
    one, other = KVLayout(2, 2, 12), KVLayout(1, 1, 7, "float32", planes=1)
    kvs = [normal(layout, tokens, seed) for seed, (layout, tokens) in enumerate([(one, 9), (other, 9)] * 2)]
    kvs += [normal(one, 0), normal(one, 31), KVTensor(one, np.zeros(one.shape(9), one.np_dtype)), normal(one, 9, 5)]
    kvs[-1].data[:, :, 3] *= 1000  # exponents and wider offsets than the others'
    payloads = method.encode_many(kvs)
    assert payloads == [method.encode(kv) for kv in kvs]
    some = [place for place, kv in enumerate(kvs) if kv.layout == one]
    views = [memoryview(b"\0" + bytes(payloads[place]))[1:] for place in some]
    decoded = method.decode_many(views, one, [kvs[place].num_tokens for place in some], 1)
    for place, kv in zip(some, decoded, strict=True):
        assert kv.data.tobytes() == round_trip(kvs[place], method)[1].data.tobytes()


# --- size and error --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", LEVELS)
def test_the_error_is_within_the_documented_bound(level, dtype):
    """Half a step times the token's power of two, a 2**k-th of it where refined, more where the gain shrinks."""
    kv = normal(KVLayout(2, 2, 32, dtype), 200)
    method = METHODS[f"level {level}"]
    payload, decoded = round_trip(kv, method)
    _, found, setting = quantized(kv, method)
    exact, got = blocks_of(kv).astype(np.float64), blocks_of(decoded).astype(np.float64)
    inverse = (found.inverses.astype(np.uint32) << np.uint32(16)).view(np.float32)
    # Of the bound itself, the rounding of float32 sums and of the dtype.
    slack = (
        np.maximum(np.abs(exact), np.abs(got)) * float(ml_dtypes.finfo(kv.layout.np_dtype).eps)
        + 1e-4 / inverse[:, None, None]
    )
    steps = np.exp2(found.scales)[:, :, None] / inverse[:, None, None]
    signed = np.where(found.symbols > 63, found.symbols - 127.0, found.symbols)
    gains = np.stack([builtin_tables(127).gains[tables_of(payload, kv, index)] for index in range(4)]) / 256
    bound = (0.5 + (1 - gains[:, None]) * np.abs(signed)) * steps
    bound[:, : setting.refined_tokens] = (0.5 * steps / 2**setting.refine_bits)[:, : setting.refined_tokens]
    assert np.all(np.abs(got - exact) <= bound + slack)


def bits_and_error(kv, method):
    payload, decoded = round_trip(kv, method)
    exact = kv.data.astype(np.float64)
    return 8 * len(payload) / exact.size, np.square(decoded.data - exact).sum() / np.square(exact).sum()


def usual(layout, tokens):
    """As the benchmarks make it: see lmcache_kit.codec_tools.random_kv."""
    rng = np.random.default_rng(0)
    layers, planes, tokens, heads, dim = layout.shape(tokens)
    data = rng.standard_normal((layers, planes, tokens, heads, dim))
    data *= np.exp(rng.standard_normal((layers, planes, 1, heads, dim)) / 2)
    data += rng.standard_normal((layers, planes, 1, heads, dim)) / 2
    data *= np.exp(rng.standard_normal((layers, planes, tokens, 1, 1)) / 4)
    return KVTensor(layout, data.astype(layout.np_dtype))


@pytest.mark.parametrize(
    ("level", "bits", "error"),
    [(1, 7.6, 3e-5), (2, 5.6, 4.5e-4), (3, 4.0, 4.2e-3), (4, 3.0, 0.017), (5, 2.25, 0.05), (6, 1.5, 0.15)],
)
def test_levels_take_the_bits_that_they_are_documented_with(level, bits, error):
    got, nmse = bits_and_error(usual(KVLayout(3, 8, 128), 256), METHODS[f"level {level}"])
    assert bits - 0.12 < got < bits + 0.12
    assert nmse < error


def test_less_error_than_the_quantizer_of_lmcache_at_equal_bytes():
    """LMCache's layer rule makes most blocks of a real model 15-level ones; ours is compared by interpolation."""
    kv = usual(KVLayout(12, 8, 32), 256)
    bits, error = bits_and_error(kv, METHODS["lmcache"])
    points = [bits_and_error(kv, METHODS[f"level {level}"]) for level in (3, 4, 5, 6)]
    ours = np.exp(np.interp(bits, [p[0] for p in points][::-1], [np.log(p[1]) for p in points][::-1]))
    assert ours < 0.8 * error


def test_sink_tokens_are_kept_finer():
    kv = usual(KVLayout(2, 4, 32), 64)
    _, decoded = round_trip(kv, METHODS["level 4"])
    error = np.square(decoded.data.astype(np.float64) - kv.data).mean(axis=(0, 1, 3, 4))
    assert error[:4].max() < error[4:].min() / 4


def test_anchors_pay_where_tokens_are_alike():
    layout = KVLayout(2, 2, 32, "bfloat16")
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(layout.shape(400)) * np.sqrt(1 - 0.98**2)
    data = np.zeros(layout.shape(400))
    data[:, :, 0] = rng.standard_normal(data[:, :, 0].shape)
    for token in range(1, 400):
        data[:, :, token] = 0.98 * data[:, :, token - 1] + noise[:, :, token]
    kv = KVTensor(layout, data.astype(layout.np_dtype))
    for base in ({}, {"quantizer": "lmcache"}, {"level": 3}):
        plain, with_anchors = codec(**base), codec(**base, anchor_delta=True)
        short, long = (round_trip(kv, method) for method in (with_anchors, plain))
        assert len(short[0]) < 0.9 * len(long[0])
        # The symbols are the same; the gain, which is the table's, differs.
        if base.get("quantizer"):
            assert short[1].data.tobytes() == long[1].data.tobytes()


@pytest.mark.parametrize("base", [{}, {"quantizer": "lmcache"}, {"level": 1}])
def test_anchors_cost_a_bit_a_channel_where_tokens_are_not(base):
    layout = KVLayout(2, 2, 32)
    kv = usual(layout, 300)
    plain, with_anchors = (codec(**base, anchor_delta=delta).encode(kv) for delta in (False, True))
    # A channel or two may look alike by chance.
    assert 4 * 64 // 8 - 16 <= len(with_anchors) - len(plain) <= 4 * 64 // 8


# --- lmcache ---------------------------------------------------------------------------------------------------------


def test_layer_rule_is_lmcaches():
    levels = np.array(lmcache_levels(32, 2)).reshape(32, 2)
    assert levels[:, 0].tolist() == [31] * 10 + [15] * 22
    assert levels[:, 1].tolist() == [31] * 2 + [15] * 30
    assert lmcache_levels(9, 2) == (31,) * 18
    assert np.array(lmcache_levels(10, 2)).reshape(10, 2)[:, 1].tolist() == [31] * 2 + [15] * 8
    assert lmcache_levels(12, 1) == (31,) * 10 + (15,) * 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_those_of_lmcaches_arithmetic_in_torch(dtype):
    torch = pytest.importorskip("torch", reason="the arithmetic that LMCache runs is torch's")
    kv = normal(KVLayout(12, 2, 40, dtype), 65)
    _, decoded = round_trip(kv, METHODS["lmcache"])
    bits = {"bfloat16": np.int16, "float16": np.int16, "float32": np.int32}[dtype]
    x = torch.from_numpy(kv.data.view(bits).reshape(24, 65, 80).copy()).view(getattr(torch, dtype))
    middle = torch.tensor(np.array(lmcache_levels(12, 2)) // 2, dtype=torch.float32)[:, None, None]
    top = x.abs().amax(dim=-1, keepdim=True)
    symbols = torch.round(x * (middle / top) + middle).to(torch.int8)
    values = ((symbols - middle) / middle * top).to(x.dtype)
    assert_same(
        decoded.data.reshape(24, 65, 80), values.view(getattr(torch, np.dtype(bits).name)).numpy().view(kv.data.dtype)
    )


# --- the rest --------------------------------------------------------------------------------------------------------


@given(tokens=st.integers(1, 9000), channels=st.integers(1, 4096))
def test_fold_divides_the_channels_and_is_no_larger_than_needed(tokens, channels):
    fold = fold_of(tokens, channels)
    assert channels % fold == 0
    assert fold == 1 or fold // 2 * tokens < 512
    assert fold * tokens >= 512 or channels % (2 * fold)


def test_unknown_version_is_refused():
    kv = normal(KVLayout(1, 1, 8), 4)
    method = METHODS["level 4"]
    with pytest.raises(BlobError, match="version 2"):
        method.decode(memoryview(method.encode(kv)), kv.layout, 4, 2)


@pytest.mark.parametrize("backend", ["auto", "numpy"])
def test_neither_the_record_nor_the_method_loads_what_it_does_not_use(backend):
    code = (
        "import sys\n"
        "from lmcache_kit_cachegen import lmcache_kit_compression_methods as hook\n"
        "(record,) = hook()\n"
        "print('numpy' in sys.modules and 'lmcache_kit_kernels' in sys.modules)\n"
        f"record.factory(record.options(backend='{backend}'))\n"
        "print(sorted({'jax', 'torch', 'numba'} & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "[]"]
