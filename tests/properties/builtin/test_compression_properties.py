"""What is special of our compression methods; what all methods promise is tested in tests/conformance."""

from __future__ import annotations

import bisect
import math
import os

import ml_dtypes
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcache_kit.builtin.compression.fp8 import Fp8Method
from lmcache_kit.builtin.compression.naive import NaiveMethod
from lmcache_kit.builtin.compression.zstd import ZstdMethod
from lmcache_kit.errors import BlobError, InvalidRequestError
from lmcache_kit.kv import KVLayout, KVTensor
from lmcache_kit.testing.strategies import finite_kv

METHODS = {
    "naive": NaiveMethod(),
    "zstd": ZstdMethod(),
    "zstd plain": ZstdMethod(shuffle=False),
    "zstd small": ZstdMethod(level=19),
    "fp8": Fp8Method(),
}


def decode(method, payload, kv: KVTensor) -> KVTensor:
    # Behind an odd number of bytes, as payloads are in blobs.
    return method.decode(memoryview(b"!" + bytes(payload))[1:], kv.layout, kv.num_tokens, method.version)


def test_naive_copies_nothing():
    layout = KVLayout(2, 2, 4, "float32")
    kv = KVTensor(layout, np.arange(32 * 3, dtype=np.float32).reshape(layout.shape(3)))
    method = NaiveMethod()
    payload = method.encode(kv)
    assert np.shares_memory(np.frombuffer(payload, dtype=np.uint8), kv.data)
    decoded = method.decode(memoryview(payload), layout, 3, 1)
    assert np.shares_memory(decoded.data, kv.data)
    for part in method.decode_layers(memoryview(payload), layout, 3, 1):
        assert np.shares_memory(part.data, kv.data)


# -- fp8 against an oracle that knows the format only from its specification ---------------------------------------


def e4m3_values() -> list[tuple[float, int]]:
    """(value, code) of every positive finite e4m3 number: 4 exponent bits with bias 7, 3 mantissa bits."""
    values = []
    for code in range(0x7F):
        exponent, mantissa = code >> 3, code & 7
        values.append(((mantissa / 8) * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7), code))
    return values


VALUES = e4m3_values()
BELOW_MAX = {
    "bfloat16": float(ml_dtypes.finfo(ml_dtypes.bfloat16).max),
    "float16": 65504.0,
    "float32": float(np.finfo(np.float32).max),
}


def nearest_e4m3(magnitude: float) -> float:
    """Ties go to the even code."""
    above = bisect.bisect_left(VALUES, (magnitude, 0))
    return min(VALUES[max(0, above - 1) : above + 1], key=lambda entry: (abs(entry[0] - magnitude), entry[1] % 2))[0]


def fp8_oracle(vector: list[float], dtype: str) -> list[float]:
    largest = max(map(abs, vector))
    exponent = -126
    while largest > 448 * 2.0**exponent:
        exponent += 1
    answer = []
    for value in vector:
        magnitude = nearest_e4m3(abs(value) / 2.0**exponent) * 2.0**exponent
        answer.append(math.copysign(min(magnitude, BELOW_MAX[dtype]), value))
    return answer


def test_the_oracle_knows_the_format():
    assert len(VALUES) == 127
    assert VALUES[-1][0] == 448
    assert VALUES[1][0] == 2**-9


@settings(max_examples=150, deadline=None)
@given(kv=finite_kv())
def test_fp8_answers_what_the_specification_says(kv):
    method = METHODS["fp8"]
    decoded = decode(method, method.encode(kv), kv)
    got = decoded.data.astype(np.float64).reshape(-1, kv.layout.head_dim)
    given_ = kv.data.astype(np.float64).reshape(-1, kv.layout.head_dim)
    for vector, answer in zip(given_, got, strict=True):
        want = np.array(fp8_oracle(vector.tolist(), kv.layout.dtype)).astype(kv.layout.np_dtype).astype(np.float64)
        np.testing.assert_array_equal(answer, want)


@settings(max_examples=150, deadline=None)
@given(kv=finite_kv())
def test_fp8_keeps_its_documented_error(kv):
    method = METHODS["fp8"]
    payload = method.encode(kv)
    vectors = kv.data.size // kv.layout.head_dim
    assert len(payload) == vectors * (1 + kv.layout.head_dim)
    exact = kv.data.astype(np.float64)
    error = np.abs(decode(method, payload, kv).data.astype(np.float64) - exact)
    if kv.num_tokens == 0:
        return
    largest = np.maximum(np.abs(exact).max(axis=4, keepdims=True), 2.0**-118)
    smallest = float(ml_dtypes.finfo(kv.layout.np_dtype).smallest_subnormal)
    assert (error <= np.maximum(np.abs(exact) / 16, largest / 229376) + smallest / 2).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_fp8_keeps_zeros_e4m3_values_and_outliers(dtype):
    layout = KVLayout(1, 1, 127, dtype, planes=1)
    codes = np.array([value for value, _ in VALUES])
    rows = np.stack([codes, -codes, np.zeros(127), np.full(127, 3.5), np.where(np.arange(127) == 5, 60000.0, 1.0)])
    kv = KVTensor(layout, rows.astype(layout.np_dtype).reshape(layout.shape(5)))
    got = decode(METHODS["fp8"], METHODS["fp8"].encode(kv), kv).data.astype(np.float64).reshape(5, 127)
    np.testing.assert_array_equal(got[:4], rows[:4])
    # One outlier of 60,000 among ones: the ones are still there (a linear 8-bit scale would have lost them).
    assert abs(got[4, 5] - 60000) <= 60000 / 16
    np.testing.assert_array_equal(np.delete(got[4], 5), 1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_fp8_refuses_what_is_not_finite_and_says_where(dtype, value):
    layout = KVLayout(3, 2, 4, dtype)
    kv = KVTensor(layout, np.ones(layout.shape(5), dtype=layout.np_dtype))
    kv.data[2, 1, 3, 0, 2] = value
    with pytest.raises(InvalidRequestError, match="holds 1 of them in layer 2, the first at plane 1, token 3, head 0"):
        METHODS["fp8"].encode(kv)


# -- payloads that nobody encoded ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=100, deadline=None)
@given(kv=finite_kv(), data=st.data())
def test_nothing_may_follow_a_payload_and_zstd_notices_every_change(name, kv, data):
    method = METHODS[name]
    payload = bytearray(method.encode(kv))
    if not payload:
        return
    with pytest.raises(BlobError):
        decode(method, bytes(payload) + b"\0", kv)
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        changed = decode(method, payload, kv)
    except BlobError:
        return
    assert (changed.layout, changed.num_tokens) == (kv.layout, kv.num_tokens)
    if name.startswith("zstd"):  # its frames carry a checksum: only bits without a meaning can change unnoticed
        assert bytes(changed.tobytes_view()) == bytes(kv.tobytes_view())


def hostile_frames(nbytes: int) -> dict[str, bytes]:
    ones = zstandard.ZstdCompressor(write_checksum=True)
    streamed = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(nbytes))
    magic = zstandard.MAGIC_NUMBER.to_bytes(4, "little")
    exact = ones.compress(bytes(nbytes))
    return {
        "a bomb of 64 MiB": zstandard.ZstdCompressor().compress(bytes(1 << 26)),
        "announces 2**62 bytes": magic + b"\xe0" + (1 << 62).to_bytes(8, "little") + b"\x01\x00\x00",
        "does not announce": streamed,
        "one byte less": ones.compress(bytes(nbytes - 1)),
        "one byte more": ones.compress(bytes(nbytes + 1)),
        "two frames": exact + exact,
        "a frame and noise": exact + b"noise",
        "skippable frame": b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + exact,
        "needs a dictionary": zstandard.ZstdCompressor(
            dict_data=zstandard.ZstdCompressionDict(bytes(range(256)) * 40, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        ).compress(os.urandom(nbytes))[:-3],
        "nothing": b"",
        "the magic alone": magic,
    }


LAYOUT = KVLayout(2, 2, 8, "float32")


HOSTILE = hostile_frames(LAYOUT.nbytes(4))


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("arrangement", [b"E", b"P"])
def test_hostile_zstd_frames(case, arrangement):
    payload = arrangement + HOSTILE[case]
    with pytest.raises(BlobError):
        METHODS["zstd"].decode(memoryview(payload), LAYOUT, 4, 1)


def test_fp8_refuses_codes_that_are_never_written():
    layout = KVLayout(1, 1, 2, "float16", planes=1)
    for payload in (b"\xf7\x00\x00", b"\xff\x00\x00", b"\x7e\x7f\x00", b"\x7e\x00\xff"):
        with pytest.raises(BlobError, match="never written"):
            METHODS["fp8"].decode(memoryview(payload), layout, 1, 1)


def test_byte_planes_are_what_makes_zstd_worth_it():
    layout = KVLayout(4, 4, 64, "bfloat16")
    kv = KVTensor(layout, np.random.default_rng(0).standard_normal(layout.shape(64)).astype(layout.np_dtype))
    assert len(METHODS["zstd"].encode(kv)) < 0.9 * len(METHODS["zstd plain"].encode(kv))
