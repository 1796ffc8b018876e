import sys
import types

import numpy as np
import pytest

from lmcache_kit.contracts.compression import CompressionMethod
from lmcache_kit.contracts.records import CompressionPlugin
from lmcache_kit.errors import BlobError, ConfigError, UnknownNameError
from lmcache_kit.hookspecs import hookimpl
from lmcache_kit.instance.store.codecs import CodecSet, verify_decoded
from lmcache_kit.kv import BlobHeader, ChunkKey, KVLayout, KVTensor, pack_blob, peek_header
from lmcache_kit.plugins import PluginRegistry

KEY = ChunkKey("m", -5)


class Rude(CompressionMethod):
    """Decodes with the wrong errors and the wrong shapes."""

    made = 0

    def __init__(self):
        type(self).made += 1

    def encode(self, kv):
        return b"payload"

    def decode(self, payload, layout, num_tokens, version):
        if bytes(payload) == b"boom":
            raise RuntimeError("not a BlobError")
        return KVTensor.empty(layout, num_tokens + 1)


class _Module:
    """A plugin module with one method."""

    @staticmethod
    @hookimpl
    def lmcache_kit_compression_methods():
        yield CompressionPlugin(name="rude", summary="", factory=lambda options: Rude())


@pytest.fixture
def codecs(monkeypatch):
    module = types.ModuleType("rude_plugin")
    module.lmcache_kit_compression_methods = _Module.lmcache_kit_compression_methods
    monkeypatch.setitem(sys.modules, "rude_plugin", module)
    return CodecSet(PluginRegistry(entry_points=[], modules=["rude_plugin"]))


def test_unknown_method_names_the_known_ones(codecs):
    with pytest.raises(UnknownNameError) as caught:
        codecs.get("zstdd")
    assert caught.value.message == "unknown compression method 'zstdd'"
    assert "did you mean 'zstd'" in caught.value.hint
    assert "naive" in caught.value.hint


def test_a_method_of_a_known_distribution_says_how_to_install_it(codecs):
    with pytest.raises(UnknownNameError) as caught:
        codecs.get("cachegen")
    assert "pip install lmcache-kit-cachegen" in caught.value.hint
    assert "known: fp8, naive" in caught.value.hint


def test_methods_are_made_once_and_late(codecs):
    Rude.made = 0
    assert "rude" in codecs.names()
    assert not codecs.lossless("rude")
    assert Rude.made == 0
    assert codecs.get("rude") is codecs.get("rude")
    assert Rude.made == 1


def test_wrong_options_are_a_config_error():
    with pytest.raises(ConfigError, match="naive"):
        CodecSet(PluginRegistry(entry_points=[]), options={"naive": {"level": 3}}).get("naive")


@pytest.mark.parametrize("method", ["naive", "zstd", "fp8"])
@pytest.mark.parametrize("planes", [1, 2])
def test_the_header_says_what_is_in_the_blob(codecs, method, planes):
    layout = KVLayout(1, 2, 4, "bfloat16", planes)
    kv = KVTensor(layout, np.ones(layout.shape(3), dtype=layout.np_dtype))
    blob = codecs.encode(kv, KEY, method)
    assert isinstance(blob, bytes)
    header = peek_header(blob)
    assert (header.codec, header.num_tokens, header.key, header.layout) == (method, 3, KEY, layout)
    assert verify_decoded(kv, codecs.decode(blob), lossless=codecs.lossless(method)) is None


@pytest.mark.parametrize("payload", [b"boom", b"shape"])
def test_a_method_that_misbehaves_is_a_blob_error(codecs, payload):
    header = BlobHeader("rude", 1, KVLayout(1, 1, 1), 2, KEY)
    with pytest.raises(BlobError, match="rude"):
        codecs.decode(pack_blob(header, payload))


def test_a_blob_of_an_unknown_method_is_a_blob_error(codecs):
    header = BlobHeader("lost", 1, KVLayout(1, 1, 1), 2, KEY)
    with pytest.raises(BlobError, match="unknown compression method 'lost'"):
        codecs.decode(pack_blob(header, b""))


def _kv(values, dtype="float32"):
    layout = KVLayout(1, 1, 1, dtype, 1)
    return KVTensor(layout, np.array(values, dtype=layout.np_dtype).reshape(layout.shape(len(values))))


def test_verification_of_lossless_methods_is_bit_exact():
    assert verify_decoded(_kv([0.0]), _kv([-0.0]), lossless=True) is not None
    assert verify_decoded(_kv([np.nan]), _kv([np.nan]), lossless=True) is None
    assert verify_decoded(_kv([1.0]), _kv([1.0, 2.0]), lossless=True) is not None


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_verification_of_lossy_methods_keeps_finite_values_finite(dtype):
    assert verify_decoded(_kv([1.0], dtype), _kv([7.0], dtype), lossless=False) is None
    assert verify_decoded(_kv([1.0], dtype), _kv([np.inf], dtype), lossless=False) is not None
    assert verify_decoded(_kv([np.inf], dtype), _kv([np.nan], dtype), lossless=False) is None
    assert verify_decoded(_kv([1.0], "float32"), _kv([1.0], "float16"), lossless=False) is not None
