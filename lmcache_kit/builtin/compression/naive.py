"""The identity: raw KV as the payload."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lmcache_kit.contracts.compression import CompressionMethod
from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.errors import BlobError
from lmcache_kit.kv.layout import KVLayout, KVTensor

__all__ = ["NaiveMethod"]


class NaiveMethod(CompressionMethod):
    """Payload version 1: the elements of ``[L, P, T, H, D]`` in C order, little-endian.

    Nothing is copied in either direction: the payload is a view of the tensor, the tensor a view of the payload (and
    read-only when the payload is).
    """

    def encode(self, kv: KVTensor) -> Buffer:
        return kv.tobytes_view()

    def decode(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> KVTensor:
        payload = memoryview(payload).cast("B")
        if version != self.version:
            raise BlobError(f"naive payload version {version} is unknown, this build reads version {self.version}")
        if len(payload) != layout.nbytes(num_tokens):
            raise BlobError(
                f"naive payload has {len(payload)} bytes, {num_tokens} tokens of its layout take "
                f"{layout.nbytes(num_tokens)}"
            )
        return KVTensor.from_bytes(payload, layout, num_tokens)

    def decode_layers(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> Iterator[KVTensor]:
        """Views of the layers, one after another."""
        data = self.decode(payload, layout, num_tokens, version).data
        single = replace(layout, num_layers=1)
        for layer in range(layout.num_layers):
            yield KVTensor(single, data[layer : layer + 1])
