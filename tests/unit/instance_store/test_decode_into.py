"""Decoding into a place of a larger tensor: with and without layers, cut inside the chunk, and from bad methods."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from lmcache_kit.contracts import CompressionMethod
from lmcache_kit.errors import BlobError
from lmcache_kit.instance.store.codecs import CodecSet
from lmcache_kit.kv import ChunkKey, KVLayout, KVTensor, unpack_blob

LAYOUT = KVLayout(3, 2, 4, "float16")
KEY = ChunkKey("m", 1)


def random_kv(num_tokens: int) -> KVTensor:
    rng = np.random.default_rng(5)
    return KVTensor(LAYOUT, rng.standard_normal(LAYOUT.shape(num_tokens)).astype(np.float16))


@pytest.mark.parametrize("method", ["naive", "zstd", "fp8"])
@pytest.mark.parametrize("tokens", [1, 5, 8])
def test_it_equals_the_whole_decode(method: str, tokens: int) -> None:
    codecs = CodecSet()
    blob = unpack_blob(codecs.encode(random_kv(8), KEY, method))
    out = KVTensor.empty(LAYOUT, 20)
    out.data[:] = 0
    codecs.decode_into(blob, out.data[:, :, 4 : 4 + tokens])
    assert np.array_equal(out.data[:, :, 4 : 4 + tokens], codecs.decode_blob(blob).data[:, :, :tokens])
    assert not out.data[:, :, :4].any()
    assert not out.data[:, :, 4 + tokens :].any(), "nothing outside the place may change"


class Layers(CompressionMethod):
    """Gives ``count`` layers, then raises when told to."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self._count, self._error = count, error

    def encode(self, kv: KVTensor) -> bytes:
        return bytes(kv.tobytes_view())

    def decode(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> KVTensor:
        return KVTensor.from_bytes(payload, layout, num_tokens)

    def decode_layers(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> Iterator[KVTensor]:
        one = KVLayout(1, layout.num_kv_heads, layout.head_dim, layout.dtype)
        for _ in range(self._count):
            yield KVTensor.empty(one, num_tokens)
        if self._error is not None:
            raise self._error


@pytest.mark.parametrize(
    "method", [Layers(2), Layers(4), Layers(1, BlobError("damaged")), Layers(1, IndexError("out of range"))]
)
def test_a_wrong_number_of_layers_or_any_error_is_a_blob_error(method: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    codecs = CodecSet()
    blob = unpack_blob(codecs.encode(random_kv(8), KEY, "naive"))
    monkeypatch.setattr(codecs, "get", lambda name: method)
    with pytest.raises(BlobError):
        codecs.decode_into(blob, KVTensor.empty(LAYOUT, 8).data)
