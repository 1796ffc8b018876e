"""Damaged payloads: a BlobError, whatever was done to them."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmcache_kit_cachegen.container import Mode, PayloadReader
from lmcache_kit_cachegen.method import CacheGen
from lmcache_kit_cachegen.plugin import CacheGenOptions

from lmcache_kit.errors import BlobError
from lmcache_kit.kv.layout import KVLayout, KVTensor

METHOD = CacheGen(CacheGenOptions())
LAYOUT = KVLayout(2, 1, 8, "float16")
TOKENS = 90


def payload_with_every_mode() -> bytes:
    rng = np.random.default_rng(0)
    data = rng.standard_normal(LAYOUT.shape(TOKENS)).astype(np.float16)
    data[0, 1] = rng.uniform(-1, 1, data[0, 1].shape)
    data[0, 1, :, :, 0] = 1
    data[1, 0] = 0
    data[1, 1, 3, 0, 2] = np.inf
    return METHOD.encode(KVTensor(LAYOUT, data))


PAYLOAD = payload_with_every_mode()
DIRECTORY = 24  # starts here, 16 bytes an entry: mode, levels, zero, CRC-32, length
GROUP = 14  # lanes per group, two bytes


def decode(payload, layout=LAYOUT, tokens=TOKENS):
    return METHOD.decode(memoryview(payload), layout, tokens, 1)


def test_the_payload_at_hand_has_every_mode():
    reader = PayloadReader(memoryview(PAYLOAD), LAYOUT, TOKENS)
    assert {entry.mode for entry in reader.entries} == set(Mode)


def test_every_flipped_bit_is_noticed():
    for place in range(len(PAYLOAD)):
        damaged = bytearray(PAYLOAD)
        damaged[place] ^= 1 << (place % 8)
        with pytest.raises(BlobError):
            decode(damaged)


def test_every_truncation_and_any_addition_is_noticed():
    for size in range(len(PAYLOAD)):
        with pytest.raises(BlobError):
            decode(PAYLOAD[:size])
    with pytest.raises(BlobError):
        decode(PAYLOAD + b"\0")


def rewrite(payload, index, body=None, mode=None, levels=None):
    """The payload with one block replaced and all checksums made right again: damage that only structure can show."""
    count = LAYOUT.num_layers * LAYOUT.planes
    reader = PayloadReader(memoryview(payload), LAYOUT, TOKENS)
    head, bodies = bytearray(payload[:DIRECTORY]), []
    for number, entry in enumerate(reader.entries):
        data = bytes(reader.body(number))
        chosen, level = entry.mode, entry.levels
        if number == index:
            data = data if body is None else body
            chosen, level = entry.mode if mode is None else mode, entry.levels if levels is None else levels
        head += struct.pack("<BBHIQ", chosen, level, 0, zlib.crc32(data), len(data))
        bodies.append(data)
    assert len(head) == DIRECTORY + 16 * count
    return bytes(head) + struct.pack("<I", zlib.crc32(head)) + b"".join(bodies)


def test_rewriting_changes_nothing_by_itself():
    assert rewrite(PAYLOAD, 0) == PAYLOAD


@settings(max_examples=150, deadline=None)
@given(data=st.data(), index=st.integers(0, 3))
def test_damage_behind_valid_checksums_is_an_error_or_a_tensor(data, index):
    body = bytearray(PayloadReader(memoryview(PAYLOAD), LAYOUT, TOKENS).body(index))
    kind = data.draw(st.sampled_from(["flip", "cut", "grow", "noise", "mode", "levels"]))
    mode = levels = None
    if kind == "flip":
        body[data.draw(st.integers(0, len(body) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del body[data.draw(st.integers(0, len(body) - 1)) :]
    elif kind == "grow":
        body += data.draw(st.binary(min_size=1, max_size=9))
    elif kind == "noise":
        body = bytearray(np.random.default_rng(data.draw(st.integers(0, 2**32))).bytes(len(body)))
    elif kind == "mode":
        mode = data.draw(st.integers(0, 255))
    else:
        levels = data.draw(st.integers(0, 255))
    payload = rewrite(PAYLOAD, index, bytes(body), mode, levels)
    try:
        decoded = decode(payload)
    except BlobError:
        return
    assert decoded.data.shape == LAYOUT.shape(TOKENS)


@settings(max_examples=100, deadline=None)
@given(place=st.integers(0, DIRECTORY - 1), bits=st.integers(1, 255))
def test_a_header_that_was_changed_on_purpose(place, bits):
    head = bytearray(PAYLOAD[: DIRECTORY + 64])
    head[place] ^= bits
    payload = bytes(head) + struct.pack("<I", zlib.crc32(head)) + PAYLOAD[DIRECTORY + 68 :]
    if GROUP <= place < GROUP + 2 and head[GROUP : GROUP + 2] != b"\0\0":
        # One lane is one group, whatever the size of a group.
        assert decode(payload).data.tobytes() == decode(PAYLOAD).data.tobytes()
    else:
        with pytest.raises(BlobError):
            decode(payload)


@settings(max_examples=50, deadline=None)
@given(noise=st.binary(max_size=200))
def test_noise_is_no_payload(noise):
    with pytest.raises(BlobError):
        decode(noise)


@pytest.mark.parametrize(
    ("layout", "tokens"),
    [
        (KVLayout(2, 1, 8, "bfloat16"), TOKENS),
        (KVLayout(2, 8, 1, "float16"), TOKENS),
        (KVLayout(4, 1, 8, "float16", planes=1), TOKENS),
        (LAYOUT, TOKENS - 1),
    ],
)
def test_a_payload_of_another_shape_is_refused(layout, tokens):
    with pytest.raises(BlobError):
        decode(PAYLOAD, layout, tokens)


def test_a_layer_is_readable_while_a_later_one_is_damaged():
    reader = PayloadReader(memoryview(PAYLOAD), LAYOUT, TOKENS)
    damaged = bytearray(PAYLOAD)
    damaged[reader.entries[2].start] ^= 1
    layers = METHOD.decode_layers(memoryview(damaged), LAYOUT, TOKENS, 1)
    whole = decode(PAYLOAD)
    assert next(layers).data.tobytes() == whole.data[:1].tobytes()
    with pytest.raises(BlobError, match="block 2"):
        next(layers)
