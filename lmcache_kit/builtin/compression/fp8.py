"""8-bit floats with a shared exponent per head vector.

Each vector of D elements (one layer, plane, token and head) is divided by a power of two, ``2**e``, that brings its
largest magnitude into (224, 448], the top of the e4m3 range, and its elements are rounded to the nearest e4m3 value,
ties to even (OCP 8-bit Floating Point Specification; the finite-only variant, called ``e4m3fn``).

The shared exponents are those of the OCP Microscaling formats (E8M0), with the head vector as the block. e4m3 is a
floating-point format: a finer scale would not make values in its range more precise, it only decides which values
fall out of the range at the bottom. So one byte per head vector does what four bytes of float32 scale would.

Error: an element x of a vector with largest magnitude m is off by at most ``max(|x| / 16, m / 229376)`` (half a unit
of e4m3's 4 significant bits, or half of its smallest step, 2**-10 / 224), where the element type can show the
difference; m below 2**-118 counts as 2**-118. Zeros and e4m3 values stay exact. Infinities and NaN are refused.

Payload version 1: layer after layer, first one byte ``e + 126`` (0 to 246) per vector in the order ``[P, T, H]``, then
one e4m3 byte per element in the order ``[P, T, H, D]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np

from lmcache_kit.contracts.compression import CompressionMethod
from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.errors import BlobError, InvalidRequestError
from lmcache_kit.kv.layout import KVLayout, KVTensor

__all__ = ["Fp8Method"]

_BIAS = 126
_MIN_EXPONENT = -_BIAS
_MAX_CODE = 120 + _BIAS  # the exponent of the largest float32
_VALUES = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
_NAN_BITS = np.uint8(0x7F)

Array = np.ndarray[Any, np.dtype[Any]]


class Fp8Method(CompressionMethod):
    """Half of 16-bit KV and a quarter of 32-bit KV, plus one byte per head vector."""

    def encode(self, kv: KVTensor) -> Buffer:
        layout, num_tokens = kv.layout, kv.num_tokens
        vectors = layout.planes * num_tokens * layout.num_kv_heads
        payload = np.empty((layout.num_layers, vectors * (1 + layout.head_dim)), dtype=np.uint8)
        for layer in range(layout.num_layers):
            values = _float32(kv.data[layer]).reshape(vectors, layout.head_dim)
            largest = np.abs(values).max(axis=1)
            if not np.isfinite(largest).all():
                raise InvalidRequestError(_not_finite(kv, layer), hint="a lossless method stores such KV as it is")
            exponents = _exponents(largest)
            values *= np.ldexp(np.float32(1), -exponents)[:, None]
            payload[layer, :vectors] = exponents + _BIAS
            payload[layer, vectors:] = values.astype(ml_dtypes.float8_e4m3fn).view(np.uint8).reshape(-1)
        return payload.reshape(-1).data

    def decode(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> KVTensor:
        layers = self._layers(payload, layout, num_tokens, version)
        kv = KVTensor.empty(layout, num_tokens)
        for layer, part in enumerate(layers):
            _decode_layer(part, kv.data[layer])
        return kv

    def decode_layers(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> Iterator[KVTensor]:
        """The layers, each decoded when it is asked for."""
        single = replace(layout, num_layers=1)
        for part in self._layers(payload, layout, num_tokens, version):
            kv = KVTensor.empty(single, num_tokens)
            _decode_layer(part, kv.data[0])
            yield kv

    def _layers(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> Array:
        payload = memoryview(payload).cast("B")
        if version != self.version:
            raise BlobError(f"fp8 payload version {version} is unknown, this build reads version {self.version}")
        size = layout.planes * num_tokens * layout.num_kv_heads * (1 + layout.head_dim)
        if len(payload) != layout.num_layers * size:
            raise BlobError(
                f"fp8 payload has {len(payload)} bytes, {num_tokens} tokens of its layout take "
                f"{layout.num_layers * size}"
            )
        return np.frombuffer(payload, dtype=np.uint8).reshape(layout.num_layers, size)


def _float32(values: Array) -> Array:
    """A copy of ``values``; exact. A signalling NaN is no reason to warn: it is refused right after."""
    with np.errstate(invalid="ignore"):
        return values.astype(np.float32)


def _exponents(largest: Array) -> Array:
    """The smallest ``e`` with ``largest <= 448 * 2**e``, but at least the smallest one there is."""
    mantissa, exponent = np.frexp(largest)  # largest = mantissa * 2**exponent, 0.5 <= mantissa < 1; 448 = 0.875 * 2**9
    exponents = np.where(mantissa <= np.float32(0.875), exponent - 9, exponent - 8)
    exponents[largest == 0] = _MIN_EXPONENT
    result: Array = np.maximum(exponents, _MIN_EXPONENT).astype(np.int32)
    return result


def _decode_layer(part: Array, out: Array) -> None:
    """Decode one layer's bytes into ``out``, ``[P, T, H, D]``. Raises BlobError for bytes that encode never makes."""
    vectors = out.shape[0] * out.shape[1] * out.shape[2]
    codes = part[vectors:].reshape(vectors, out.shape[3])
    if (part[:vectors] > _MAX_CODE).any() or ((codes & _NAN_BITS) == _NAN_BITS).any():
        raise BlobError("fp8 payload holds an exponent or a value that is never written")
    values = _VALUES[codes]
    exponents = part[:vectors].astype(np.int32) - _BIAS
    # Rounding may have gone up past the type's largest value: that value is the nearest one then.
    limit = np.float32(ml_dtypes.finfo(out.dtype).max)  # type: ignore[no-untyped-call]
    with np.errstate(over="ignore"):
        values *= np.ldexp(np.float32(1), exponents)[:, None]
    np.clip(values, -limit, limit, out=values)
    out[...] = values.reshape(out.shape)


def _not_finite(kv: KVTensor, layer: int) -> str:
    finite = np.isfinite(_float32(kv.data[layer]))
    plane, token, head, _ = np.argwhere(~finite)[0]
    return (
        f"fp8 cannot represent infinities and NaN: KV holds {np.count_nonzero(~finite)} of them in layer {layer}, "
        f"the first at plane {plane}, token {token}, head {head}"
    )
