"""The method itself.

Payload version 1: a zlib stream of ``[L, P, T, H, D]`` as unsigned little-endian integers of the element's width,
where each token's integers, from the second on, have the previous token's subtracted (modulo 2**bits, so nothing is
lost and NaN is a number like any other), arranged in byte planes: the first bytes of all elements, then the second
ones, and so on.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from lmcache_kit.contracts.compression import CompressionMethod
from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.errors import BlobError
from lmcache_kit.kv.layout import KVLayout, KVTensor

__all__ = ["EchoMethod"]


class EchoMethod(CompressionMethod):
    """Small where tokens repeat each other; on KV without repetition about the size of plain zlib."""

    version = 1  # raise it when the payload changes, and keep decoding the versions before

    def __init__(self, *, level: int) -> None:
        self._level = level

    def encode(self, kv: KVTensor) -> Buffer:
        integers = kv.data.view(_integer(kv.layout))
        differences = integers.copy()
        differences[:, :, 1:] -= integers[:, :, :-1]
        planes = differences.reshape(-1, 1).view(np.uint8).T
        return zlib.compress(np.ascontiguousarray(planes).data, self._level)

    def decode(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> KVTensor:
        if version != self.version:
            raise BlobError(f"echo payload version {version} is unknown, this build reads version {self.version}")
        planes = np.frombuffer(_inflate(payload, layout.nbytes(num_tokens)), dtype=np.uint8)
        integer = _integer(layout)
        differences = np.ascontiguousarray(planes.reshape(integer.itemsize, -1).T).view(integer)
        integers = np.cumsum(differences.reshape(layout.shape(num_tokens)), axis=2, dtype=integer)
        return KVTensor(layout, integers.view(layout.np_dtype))


def _integer(layout: KVLayout) -> np.dtype[Any]:
    return np.dtype(f"<u{layout.np_dtype.itemsize}")


def _inflate(payload: memoryview, nbytes: int) -> bytes:
    """Exactly ``nbytes`` bytes. Never makes more than one byte too many, whatever the payload was made to hold."""
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(payload, nbytes + 1)
    except zlib.error as error:
        raise BlobError(f"echo payload cannot be read: {error}") from None
    if len(data) != nbytes or not stream.eof or stream.unused_data:
        raise BlobError(f"echo payload does not hold exactly {nbytes} bytes")
    return data
