"""The method: what decoding returns, for every shape, dtype and kind of value."""

from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lmcache_kit_cachegen.container import Mode, PayloadReader
from lmcache_kit_cachegen.levels import lmcache_levels
from lmcache_kit_cachegen.method import CacheGen, fold_of
from lmcache_kit_cachegen.plugin import CacheGenOptions, lmcache_kit_compression_methods
from lmcache_kit_kernels.quantize import dequantize, quantize, representable

from lmcache_kit.contracts.compression import SupportsLayerwise
from lmcache_kit.errors import BlobError, ConfigError, InvalidRequestError
from lmcache_kit.kv.layout import KVLayout, KVTensor
from lmcache_kit.plugins import PluginRegistry, registry
from lmcache_kit.testing.checks.compression import run as conformance

DTYPES = ("bfloat16", "float16", "float32")
METHOD = CacheGen(CacheGenOptions())


def normal(layout, num_tokens, seed=0):
    """Tokens of differing size, channels of differing mean and spread: what KV looks like."""
    rng = np.random.default_rng(seed)
    layers, planes, tokens, heads, dim = layout.shape(num_tokens)
    data = rng.standard_normal((layers, planes, tokens, heads, dim))
    data *= np.exp(rng.standard_normal((layers, planes, 1, heads, dim)) / 2)
    data += rng.standard_normal((layers, planes, 1, heads, dim))
    data *= np.exp2(rng.integers(-6, 6, (layers, planes, tokens, 1, 1)))
    return KVTensor(layout, data.astype(layout.np_dtype))


def quantized(kv):
    """What decoding must return: dequantize(quantize(kv)), and kv itself in blocks outside the quantizer's domain."""
    layout = kv.layout
    channels = layout.num_kv_heads * layout.head_dim
    blocks = kv.data.reshape(layout.num_layers * layout.planes, kv.num_tokens, channels)
    levels = lmcache_levels(layout.num_layers, layout.planes)
    symbols, maxima = quantize(blocks, levels)
    values = dequantize(symbols, maxima, levels)
    inside = representable(maxima)
    return np.where(inside[:, None, None], values, blocks).reshape(kv.data.shape), inside


def assert_same(got, want):
    """Equal bit for bit, except that a zero may have lost its sign."""
    assert got.dtype == want.dtype
    unsigned = f"u{want.itemsize}"
    different = got.view(unsigned) != want.view(unsigned)
    assert np.all((got[different] == 0) & (want[different] == 0))


def round_trip(kv, method=METHOD):
    payload = method.encode(kv)
    return payload, method.decode(memoryview(payload), kv.layout, kv.num_tokens, method.version)


def check(kv):
    before = kv.data.tobytes()
    payload, decoded = round_trip(kv)
    want, inside = quantized(kv)
    assert_same(decoded.data, want)
    assert kv.data.tobytes() == before
    # Header and directory; a block never takes more than its raw values.
    assert len(payload) <= 28 + 16 * inside.size + kv.nbytes
    layers = list(METHOD.decode_layers(memoryview(payload), kv.layout, kv.num_tokens, 1))
    assert [layer.layout.num_layers for layer in layers] == [1] * kv.layout.num_layers
    assert b"".join(layer.data.tobytes() for layer in layers) == decoded.data.tobytes()
    reader = PayloadReader(memoryview(payload), kv.layout, kv.num_tokens)
    verbatim = np.array([entry.mode is Mode.VERBATIM for entry in reader.entries])
    assert np.all(verbatim[~inside])
    return payload


@settings(max_examples=40, deadline=None)
@given(
    layers=st.integers(1, 12),
    heads=st.integers(1, 4),
    head_dim=st.integers(1, 48),
    planes=st.sampled_from([1, 2]),
    tokens=st.integers(0, 70),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32),
)
@example(layers=1, heads=1, head_dim=1, planes=1, tokens=1, dtype="bfloat16", seed=0)
@example(layers=1, heads=1, head_dim=2, planes=1, tokens=1, dtype="bfloat16", seed=0)
@example(layers=11, heads=1, head_dim=1, planes=2, tokens=64, dtype="float32", seed=0)
def test_decoding_gives_the_quantized_values(layers, heads, head_dim, planes, tokens, dtype, seed):
    check(normal(KVLayout(layers, heads, head_dim, dtype, planes), tokens, seed))


@settings(max_examples=40, deadline=None)
@given(dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**32), tokens=st.integers(1, 20))
def test_any_bits_at_all(dtype, seed, tokens):
    layout = KVLayout(3, 1, 6, dtype)
    kv = normal(layout, tokens, seed)
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, kv.data[1].nbytes, dtype=np.uint8).view(layout.np_dtype).reshape(kv.data[1].shape)
    kv.data[1] = raw  # the second layer holds NaN, infinities and denormals
    _, decoded = round_trip(kv)
    want, inside = quantized(kv)
    assert_same(decoded.data, want)
    for plane in range(2):
        if not inside[2 + plane]:
            assert decoded.data[1, plane].tobytes() == raw[plane].tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "kind", ["zeros", "minus zeros", "constant", "outlier", "denormal", "largest", "nan", "infinity"]
)
def test_special_values(dtype, kind):
    layout = KVLayout(10, 1, 16, dtype)
    kv = normal(layout, 50)
    limits = ml_dtypes.finfo(layout.np_dtype)
    if kind == "outlier":
        kv.data[:, :, 7, 0, 3] = limits.max
    elif kind in ("nan", "infinity"):
        kv.data[4, 1, 20, 0, 5] = np.nan if kind == "nan" else -np.inf
    else:
        values = {
            "zeros": 0.0,
            "minus zeros": -0.0,
            "constant": -1.5,
            "denormal": limits.smallest_subnormal,
            "largest": limits.max,
        }
        kv.data[:] = values[kind]
    payload = check(kv)
    if kind in ("zeros", "constant"):
        assert len(payload) < kv.nbytes / 5
    if kind in ("nan", "infinity"):
        decoded = METHOD.decode(memoryview(payload), layout, 50, 1)
        assert decoded.data[4, 1].tobytes() == kv.data[4, 1].tobytes()


@pytest.mark.parametrize(
    ("layout", "tokens"),
    [
        (KVLayout(2, 8, 128), 257),
        (KVLayout(1, 1, 576, planes=1), 300),
        (KVLayout(1, 1, 3, "float16"), 8192),
        (KVLayout(1, 128, 128, planes=1), 3),
        (KVLayout(128, 1, 2, "float32"), 5),
    ],
    ids=["llama", "latent", "long", "wide", "deep"],
)
def test_shapes_at_the_edges(layout, tokens):
    check(normal(layout, tokens))


def test_noise_is_packed_rather_than_grown():
    layout = KVLayout(1, 1, 64, "bfloat16", planes=1)
    rng = np.random.default_rng(0)
    kv = KVTensor(layout, rng.uniform(-1, 1, layout.shape(9)).astype(layout.np_dtype))
    payload = check(kv)
    (entry,) = PayloadReader(memoryview(payload), layout, 9).entries
    assert entry.mode is Mode.PACKED


def test_long_chunks_are_refused_in_words():
    layout = KVLayout(1, 1, 1)
    with pytest.raises(InvalidRequestError, match="at most 32768 tokens"):
        METHOD.encode(KVTensor.empty(layout, 32769))


def test_backends_write_the_same_bytes_and_read_each_other():
    kv = normal(KVLayout(11, 2, 24), 40)
    xla = CacheGen(CacheGenOptions(backend="xla"))
    assert xla.backend == "xla"
    ours, values = round_trip(kv)
    theirs, other_values = round_trip(kv, xla)
    assert ours == theirs
    assert values.data.tobytes() == other_values.data.tobytes()


def test_size_on_a_chunk_of_a_usual_shape():
    kv = normal(KVLayout(12, 4, 64), 256)
    payload, decoded = round_trip(kv)
    assert len(payload) * 4 < kv.nbytes
    error = decoded.data.astype(np.float64) - kv.data.astype(np.float64)
    assert np.square(error).sum() / np.square(kv.data.astype(np.float64)).sum() < 0.05


@given(tokens=st.integers(1, 9000), channels=st.integers(1, 4096))
def test_fold_divides_the_channels_and_is_no_larger_than_needed(tokens, channels):
    fold = fold_of(tokens, channels)
    assert channels % fold == 0
    assert fold == 1 or fold // 2 * tokens < 512
    assert fold * tokens >= 512 or channels % (2 * fold)


def test_layer_rule_is_lmcaches():
    levels = lmcache_levels(32, 2).reshape(32, 2)
    assert levels[:, 0].tolist() == [31] * 10 + [15] * 22
    assert levels[:, 1].tolist() == [31] * 2 + [15] * 30
    assert lmcache_levels(9, 2).tolist() == [31] * 18
    assert lmcache_levels(10, 2).reshape(10, 2)[:, 1].tolist() == [31] * 2 + [15] * 8
    assert lmcache_levels(12, 1).tolist() == [31] * 10 + [15] * 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_those_of_lmcaches_arithmetic_in_torch(dtype):
    torch = pytest.importorskip("torch", reason="the arithmetic that LMCache runs is torch's")
    kv = normal(KVLayout(12, 2, 40, dtype), 65)
    _, decoded = round_trip(kv)
    bits = {"bfloat16": np.int16, "float16": np.int16, "float32": np.int32}[dtype]
    x = torch.from_numpy(kv.data.view(bits).reshape(24, 65, 80).copy()).view(getattr(torch, dtype))
    middle = torch.tensor(lmcache_levels(12, 2) // 2, dtype=torch.float32)[:, None, None]
    top = x.abs().amax(dim=-1, keepdim=True)
    symbols = torch.round(x * (middle / top) + middle).to(torch.int8)
    values = ((symbols - middle) / middle * top).to(x.dtype)
    assert_same(
        decoded.data.reshape(24, 65, 80), values.view(getattr(torch, np.dtype(bits).name)).numpy().view(kv.data.dtype)
    )


def record():
    (only,) = lmcache_kit_compression_methods()
    return only


def test_conformance():
    results = conformance(record(), CacheGenOptions())
    assert [result for result in results if result.outcome == "failed"] == []
    assert isinstance(METHOD, SupportsLayerwise)


def test_installed_plugin_is_found_with_its_options():
    entry = record()
    assert "cachegen" in registry().names("compression")
    assert PluginRegistry.options(entry, {"backend": "xla"}) == CacheGenOptions(backend="xla")
    with pytest.raises(ConfigError, match="backend"):
        PluginRegistry.options(entry, {"backend": "abacus"})
    with pytest.raises(ConfigError, match="no option 'levels'"):
        PluginRegistry.options(entry, {"levels": 3})


def test_unknown_version_is_refused():
    kv = normal(KVLayout(1, 1, 8), 4)
    with pytest.raises(BlobError, match="version 2"):
        METHOD.decode(memoryview(METHOD.encode(kv)), kv.layout, 4, 2)


def test_neither_the_record_nor_the_method_loads_jax():
    code = (
        "import sys\n"
        "from lmcache_kit_cachegen import lmcache_kit_compression_methods as hook\n"
        "(record,) = hook()\n"
        "print('numpy' in sys.modules and 'lmcache_kit_kernels' in sys.modules)\n"
        "record.factory(record.options())\n"
        "print('jax' in sys.modules or 'torch' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
