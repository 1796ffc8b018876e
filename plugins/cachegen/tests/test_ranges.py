"""Compiled loops over ranges of blocks, on several cores: the bytes and values of all blocks in one call."""

from __future__ import annotations

import numpy as np
import pytest
from lmcache_kit_cachegen.container import read_directory
from lmcache_kit_cachegen.header import Mode
from lmcache_kit_cachegen.method import CacheGen
from lmcache_kit_cachegen.options import CacheGenOptions
from lmcache_kit_kernels import threads

from lmcache_kit.errors import BlobError
from lmcache_kit.kv.layout import KVLayout, KVTensor

pytest.importorskip("numba", reason="the numba backend needs numba")

VARIANTS = {
    "lmcache": {"quantizer": "lmcache"},
    "level 1": {"level": 1},
    "level 2 with anchors": {"level": 2, "anchor_delta": True},
    "level 4": {"level": 4},
    "no sinks": {"level": 6, "sink_tokens": 0},
}
ELEMENTS = 16 * 24


@pytest.fixture(params=[(1, 1), (3, 1), (3, 5), (2, 1000)], ids=lambda given: "{} cores, {} blocks".format(*given))
def ranges(request, monkeypatch):
    cores, blocks = request.param
    monkeypatch.setattr(threads, "usable_cores", lambda: cores)
    monkeypatch.setattr(threads, "_AT_ONCE", blocks * ELEMENTS)
    monkeypatch.setattr(threads, "_pool", None)
    yield
    if threads._pool is not None:
        threads._pool.shutdown()


def every_kind(dtype, seed):
    """Blocks of all modes, and in one chunk of two wide offsets and exponents."""
    layout = KVLayout(11, 2, 12, dtype)
    rng = np.random.default_rng(seed)
    data = rng.standard_normal(layout.shape(16))
    data[1, 0, 1:] = data[1, 0, :1]  # coded: nothing varies
    data[2, 1] = rng.uniform(-1, 1, data[2, 1].shape)
    data[3] = -0.0
    data[4, 0, 5, 0, 2] = np.nan
    data[6, 1] *= 1e-30 if dtype != "float16" else 1e-6
    if seed % 2:
        data[7, 0, 3] *= 1000
        data[8, 1, :, 1, 4] += 3000
    if dtype == "float16":
        data[9, 0, 2, 0, 1] = 65504
        data[10, 1, :, 0, 3] = 65504
    return KVTensor(layout, data.astype(layout.np_dtype))


def modes_of(payload, kv):
    return {entry.mode for entry in read_directory(memoryview(payload), kv.layout, kv.num_tokens).entries}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_chunks_are_those_of_the_reference(variant, dtype, ranges):
    plain, compiled = (CacheGen(CacheGenOptions(backend=name, **VARIANTS[variant])) for name in ("numpy", "numba"))
    kvs = [every_kind(dtype, seed) for seed in range(4)]
    expected = [plain.encode(kv) for kv in kvs]
    assert compiled.encode_many(kvs) == expected
    assert compiled.encode(kvs[1]) == expected[1]
    assert {Mode.CODED, Mode.ZERO, Mode.VERBATIM} <= modes_of(expected[1], kvs[1])
    views = [memoryview(b"\0" + payload)[1:] for payload in expected]
    decoded = compiled.decode_many(views, kvs[0].layout, [16] * 4, 1)
    for kv, payload in zip(decoded, expected, strict=True):
        assert kv.data.tobytes() == plain.decode(memoryview(payload), kv.layout, 16, 1).data.tobytes()


def test_every_mode_is_among_them():
    kv = every_kind("bfloat16", 0)
    payloads = [CacheGen(CacheGenOptions(backend="numba", **options)).encode(kv) for options in VARIANTS.values()]
    assert set.union(*(modes_of(payload, kv) for payload in payloads)) == set(Mode)


def test_the_first_damaged_block_is_named(ranges):
    method = CacheGen(CacheGenOptions(backend="numba"))
    kv = every_kind("bfloat16", 0)
    payload = bytearray(method.encode(kv))
    entries = read_directory(memoryview(payload), kv.layout, 16).entries
    coded = [index for index, entry in enumerate(entries) if entry.mode is Mode.CODED]
    for index in (coded[3], coded[1], coded[-1]):
        payload[entries[index].fixed_start] ^= 1
    with pytest.raises(BlobError, match=f"block {coded[1]} is damaged"):
        method.decode(memoryview(payload), kv.layout, 16, 1)
