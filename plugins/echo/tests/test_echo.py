"""What the example promises. Copy these: they hold for every lossless method."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from lmcache_kit_echo import EchoOptions, lmcache_kit_compression_methods

from lmcache_kit.contracts import CompressionPlugin
from lmcache_kit.errors import BlobError, ConfigError
from lmcache_kit.kv import KVLayout, KVTensor
from lmcache_kit.plugins import PluginRegistry, registry

LAYOUTS = [
    KVLayout(2, 3, 8, "bfloat16"),
    KVLayout(1, 1, 1, "float16"),
    KVLayout(3, 1, 5, "float32", planes=1),
]


def random_kv(layout: KVLayout, num_tokens: int) -> KVTensor:
    """Every bit pattern may occur: NaN, infinities, subnormals."""
    raw = np.random.default_rng(0).integers(0, 256, layout.nbytes(num_tokens), dtype=np.uint8)
    return KVTensor.from_bytes(raw, layout, num_tokens)


@pytest.fixture
def record() -> CompressionPlugin:
    (record,) = lmcache_kit_compression_methods()
    return record


@pytest.fixture
def method(record):
    return record.factory(EchoOptions())


def test_it_is_installed(record):
    assert registry().get(CompressionPlugin, "echo").summary == record.summary


@pytest.mark.parametrize("num_tokens", [0, 1, 2, 17])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_bit_comes_back(method, layout, num_tokens):
    kv = random_kv(layout, num_tokens)
    payload = memoryview(bytes(method.encode(kv)))
    decoded = method.decode(payload, layout, num_tokens, method.version)
    assert decoded.layout == layout
    assert bytes(decoded.tobytes_view()) == bytes(kv.tobytes_view())


def test_repeated_tokens_cost_next_to_nothing(method):
    layout = LAYOUTS[0]
    once = random_kv(layout, 1)
    repeated = KVTensor.concat([once] * 64)
    assert len(method.encode(repeated)) < repeated.nbytes / 20


@pytest.mark.parametrize("cut", [0, 1, 10, -1])
def test_a_truncated_payload_is_a_blob_error(method, cut):
    layout = LAYOUTS[0]
    payload = method.encode(random_kv(layout, 4))
    with pytest.raises(BlobError):
        method.decode(memoryview(payload)[:cut], layout, 4, method.version)


def test_a_changed_byte_is_a_blob_error_or_changes_nothing(method):
    layout = LAYOUTS[0]
    kv = random_kv(layout, 4)
    payload = bytearray(method.encode(kv))
    refused = 0
    for position in range(len(payload)):
        payload[position] ^= 0x10
        try:
            decoded = method.decode(memoryview(payload), layout, 4, method.version)
        except BlobError:
            refused += 1
        else:  # the bits that fill up the stream's last byte mean nothing
            assert bytes(decoded.tobytes_view()) == bytes(kv.tobytes_view())
        payload[position] ^= 0x10
    assert refused >= len(payload) - 2


def test_a_bomb_is_not_inflated(method):
    bomb = zlib.compress(bytes(50_000_000))
    with pytest.raises(BlobError, match="exactly"):
        method.decode(memoryview(bomb), LAYOUTS[1], 1, method.version)


def test_an_unknown_version_is_a_blob_error(method):
    with pytest.raises(BlobError, match="version 2"):
        method.decode(memoryview(b""), LAYOUTS[0], 1, 2)


@pytest.mark.parametrize("values", [{"level": 0}, {"level": 10}, {"level": "high"}, {"speed": 1}])
def test_options_are_checked(record, values):
    with pytest.raises(ConfigError):
        PluginRegistry.options(record, values)
