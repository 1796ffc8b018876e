"""Damaged and forged payloads: a BlobError, whatever was done to them."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmcache_kit_cachegen.container import head_size, read_directory
from lmcache_kit_cachegen.header import Mode
from lmcache_kit_cachegen.method import CacheGen
from lmcache_kit_cachegen.options import CacheGenOptions
from lmcache_kit_cachegen.stream import LayerStream
from lmcache_kit_kernels.checks import weighted_sum

from lmcache_kit.errors import BlobError
from lmcache_kit.kv.layout import KVLayout, KVTensor

LAYOUT = KVLayout(3, 1, 40, "float16")
HEAD = head_size(LAYOUT)
METHODS = {
    "lmcache": (CacheGen(CacheGenOptions(backend="numpy", quantizer="lmcache", anchor_delta=True)), 30),
    "uniform": (CacheGen(CacheGenOptions(backend="numpy", sink_tokens=0, anchor_delta=True)), 2),
    "compiled": (CacheGen(CacheGenOptions(backend="numba", level=3, sink_tokens=3, anchor_delta=True)), 25),
    "refined": (CacheGen(CacheGenOptions(backend="numpy", level=2)), 12),
}


def payload_with_every_mode(name: str) -> bytes:
    method, tokens = METHODS[name]
    rng = np.random.default_rng(0)
    data = rng.standard_normal(LAYOUT.shape(tokens)).astype(np.float16)
    data[0, 0, 1:] = data[0, 0, :1]
    data[0, 1] = rng.uniform(-1, 1, data[0, 1].shape)
    data[1, 1, 1, 0, 2] = np.inf
    data[2, 0] = -0.0
    return method.encode(KVTensor(LAYOUT, data))


PAYLOADS = {name: payload_with_every_mode(name) for name in METHODS}
EACH = pytest.mark.parametrize("name", METHODS)


def decode(name, payload, layout=LAYOUT, tokens=None):
    method, own = METHODS[name]
    return method.decode(memoryview(payload), layout, own if tokens is None else tokens, 1)


def directory_of(name, payload):
    return read_directory(memoryview(payload), LAYOUT, METHODS[name][1])


@pytest.mark.parametrize("name", ["lmcache", "uniform"])
def test_the_payload_at_hand_has_every_mode(name):
    assert {entry.mode for entry in directory_of(name, PAYLOADS[name]).entries} == set(Mode)


@EACH
def test_every_flipped_bit_is_noticed(name):
    payload = PAYLOADS[name]
    for place in range(len(payload)):
        damaged = bytearray(payload)
        damaged[place] ^= 1 << (place % 8)
        with pytest.raises(BlobError):
            decode(name, damaged)


@EACH
def test_every_truncation_and_any_addition_is_noticed(name):
    payload = PAYLOADS[name]
    for size in range(len(payload)):
        with pytest.raises(BlobError):
            decode(name, payload[:size])
    with pytest.raises(BlobError, match="announces"):
        decode(name, payload + b"\0\0\0\0")


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(sorted(METHODS)), data=st.data())
def test_every_changed_word_is_noticed(name, data):
    payload = bytearray(PAYLOADS[name])
    place = 2 * data.draw(st.integers(0, len(payload) // 2 - 1))
    change = data.draw(st.integers(1, 65535))
    struct.pack_into("<H", payload, place, struct.unpack_from("<H", payload, place)[0] ^ change)
    with pytest.raises(BlobError):
        decode(name, payload)


def seal(name, head, blocks):
    """A payload of ``head``'s fields and blocks (mode, levels, inverse, fixed, data), every checksum made right: damage
    that only structure can show."""
    out = bytearray(head[:48])
    for mode, levels, inverse, fixed, data in blocks:
        body = bytes(fixed) + bytes(data)
        whole = np.frombuffer(body + bytes(len(body) % 2), "<u2")
        out += struct.pack("<BBHIII", mode, levels, inverse, weighted_sum(whole), len(fixed), len(data))
    out += struct.pack("<I", zlib.crc32(out))
    return bytes(out) + b"".join(bytes(block[3]) for block in blocks) + b"".join(bytes(block[4]) for block in blocks)


def opened(name):
    payload = PAYLOADS[name]
    return [
        [
            int(entry.mode),
            entry.levels,
            entry.inverse,
            bytearray(payload[entry.fixed_start : entry.fixed_start + entry.fixed_bytes]),
            bytearray(payload[entry.data_start : entry.data_start + entry.data_bytes]),
        ]
        for entry in directory_of(name, payload).entries
    ]


@EACH
def test_sealing_changes_nothing_by_itself(name):
    assert seal(name, PAYLOADS[name], opened(name)) == PAYLOADS[name]


@settings(max_examples=400, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(METHODS)), index=st.integers(0, 5), part=st.integers(3, 4))
def test_damage_behind_valid_checksums_is_an_error_or_a_tensor(data, name, index, part):
    blocks = opened(name)
    body = blocks[index][part]
    kind = data.draw(st.sampled_from(["flip", "cut", "grow", "noise", "ones", "mode", "levels", "inverse"]))
    if kind in ("flip", "cut", "noise", "ones") and not body:
        return
    if kind == "flip":
        body[data.draw(st.integers(0, len(body) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del body[data.draw(st.integers(0, len(body) - 1)) :]
    elif kind == "grow":
        body += data.draw(st.binary(min_size=1, max_size=9))
    elif kind == "noise":
        body[:] = np.random.default_rng(data.draw(st.integers(0, 2**32))).bytes(len(body))
    elif kind == "ones":
        start = data.draw(st.integers(0, len(body) - 1))
        body[start:] = b"\xff" * (len(body) - start)
    elif kind == "mode":
        blocks[index][0] = data.draw(st.integers(0, 255))
    elif kind == "levels":
        blocks[index][1] = data.draw(st.integers(0, 255))
    else:
        blocks[index][2] = data.draw(st.integers(0, 65535))
    payload = seal(name, PAYLOADS[name], blocks)
    try:
        decoded = decode(name, payload)
    except BlobError:
        return
    assert decoded.data.shape == LAYOUT.shape(METHODS[name][1])


@settings(max_examples=400, deadline=None)
@given(place=st.integers(0, 47), bits=st.integers(1, 255), name=st.sampled_from(sorted(METHODS)))
def test_a_header_that_was_changed_on_purpose(place, bits, name):
    head = bytearray(PAYLOADS[name])
    head[place] ^= bits
    try:
        decoded = decode(name, seal(name, head, opened(name)))
    except BlobError:
        return
    # Only what does not matter to these blocks, or matters to values alone, can pass.
    assert place in (14, 15, 29)
    assert decoded.data.shape == LAYOUT.shape(METHODS[name][1])


FIELDS = {
    "magic": (0, "B", 1),
    "quantizer": (4, "B", 2),
    "other quantizer": (4, "B", 0),
    "dtype": (5, "B", 3),
    "probability bits": (7, "B", 11),
    "lanes per group": (14, "H", 0),
    "tokens": (16, "I", 2**32 - 1),
    "fold": (20, "I", 3),
    "no fold": (20, "I", 0),
    "huge fold": (20, "I", 2**32 - 1),
    "refined tokens": (24, "I", 2**32 - 1),
    "refined tokens without bits": (24, "I", 1),
    "refine bits": (28, "B", 3),
    "refine bits without tokens": (28, "B", 2),
    "offset bytes": (30, "B", 4),
    "no offset bytes": (30, "B", 0),
    "exponent bytes": (31, "B", 2),
    "fingerprint": (32, "B", 7),
}


@pytest.mark.parametrize("field", FIELDS)
def test_an_impossible_header_is_refused(field):
    place, code, value = FIELDS[field]
    head = bytearray(PAYLOADS["uniform"])
    struct.pack_into("<" + code, head, place, value)
    with pytest.raises(BlobError):
        decode("uniform", seal("uniform", head, opened("uniform")))


@pytest.mark.parametrize("part", [3, 4])
@EACH
def test_parts_of_another_size_are_refused_before_anything_is_decoded(name, part):
    for index in range(6):
        for change in (b"\0\0\0\0", b"\0"):
            blocks = opened(name)
            blocks[index][part] += change
            with pytest.raises(BlobError):
                decode(name, seal(name, PAYLOADS[name], blocks))


def test_a_forged_size_allocates_nothing():
    layout = KVLayout(3, 128, 576, "float32")
    method = METHODS["uniform"][0]
    head = bytearray(PAYLOADS["uniform"][:48])
    struct.pack_into("<HHH", head, 8, 3, 128, 576)
    struct.pack_into("<B", head, 5, 2)
    struct.pack_into("<II", head, 16, 32768, 1)
    blocks = [[2, 127, 0x3F80, b"", b""]] * 6
    tracemalloc.start()
    for data_bytes in (0, 2**32 - 4):
        payload = bytearray(seal("uniform", head, blocks))
        for index in range(6):
            struct.pack_into("<I", payload, 48 + 16 * index + 12, data_bytes)
        payload[48 + 96 :] = struct.pack("<I", zlib.crc32(payload[: 48 + 96]))
        with pytest.raises(BlobError):
            method.decode(memoryview(payload), layout, 32768, 1)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@settings(max_examples=50, deadline=None)
@given(noise=st.binary(max_size=300), name=st.sampled_from(sorted(METHODS)))
def test_noise_is_no_payload(noise, name):
    with pytest.raises(BlobError):
        decode(name, noise)


@pytest.mark.parametrize(
    ("layout", "tokens"),
    [
        (KVLayout(3, 1, 40, "bfloat16"), 2),
        (KVLayout(3, 40, 1, "float16"), 2),
        (KVLayout(6, 1, 40, "float16", planes=1), 2),
        (LAYOUT, 1),
        (LAYOUT, 0),
        (LAYOUT, 2**32 - 1),
    ],
)
def test_a_payload_of_another_shape_is_refused(layout, tokens):
    with pytest.raises(BlobError):
        decode("uniform", PAYLOADS["uniform"], layout, tokens)


@EACH
def test_a_layer_is_readable_while_a_later_one_is_damaged(name):
    method, tokens = METHODS[name]
    whole = decode(name, PAYLOADS[name])
    entry = directory_of(name, PAYLOADS[name]).entries[2]
    damaged = bytearray(PAYLOADS[name])
    damaged[entry.data_start] ^= 1
    layers = method.decode_layers(memoryview(damaged), LAYOUT, tokens, 1)
    assert next(layers).data.tobytes() == whole.data[:1].tobytes()
    with pytest.raises(BlobError, match="block 2"):
        next(layers)
    stream = LayerStream(method, LAYOUT, tokens)
    (first,) = stream.feed(damaged[: entry.data_start])
    assert first.data.tobytes() == whole.data[:1].tobytes()
    with pytest.raises(BlobError, match="block 2"):
        stream.feed(damaged[entry.data_start :])


def test_a_damaged_payload_among_others_is_noticed():
    method, tokens = METHODS["uniform"]
    payload = PAYLOADS["uniform"]
    damaged = payload[:-1] + bytes([payload[-1] ^ 1])
    with pytest.raises(BlobError):
        method.decode_many([memoryview(payload), memoryview(damaged)], LAYOUT, [tokens, tokens], 1)
