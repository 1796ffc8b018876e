"""Size, error and speed of one method on one KV tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from lmcache_kit.codec_tools.abilities import SupportsDeviceCoding
from lmcache_kit.codec_tools.difference import difference
from lmcache_kit.codec_tools.methods import Choice, on_cpu
from lmcache_kit.codec_tools.timing import median_seconds, timed
from lmcache_kit.contracts.compression import CompressionMethod
from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.errors import LMCacheKitError
from lmcache_kit.kv.layout import KVTensor

__all__ = ["CodecResult", "measure_method"]


class CodecResult(msgspec.Struct, frozen=True, kw_only=True):
    """One method on one KV tensor; docs/how-to/choose-a-codec.md says what each figure is.

    Speeds are GB/s (10**9 bytes) of the uncompressed side: medians, after first calls that stand on their own.
    """

    method: str
    version: int
    shape: tuple[int, ...]
    dtype: str
    options: Mapping[str, Any]
    device: str
    raw_bytes: int
    encoded_bytes: int
    ratio: float
    bits_per_element: float
    nmse: float | None
    max_abs_error: float
    non_finite_mismatches: int
    encode_gbps: float
    decode_gbps: float
    to_bytes_gbps: float
    from_bytes_gbps: float
    first_encode_seconds: float
    first_decode_seconds: float


@dataclass(frozen=True, slots=True)
class _Timings:
    """What the calls took; the first four in seconds per call."""

    encode: float
    decode: float
    to_bytes: float
    from_bytes: float
    first_encode: float
    first_decode: float
    payload: bytes


def measure_method(choice: Choice, method: CompressionMethod, kv: KVTensor, seconds: float) -> CodecResult:
    """Measure ``method``, which ``choice`` made, on ``kv``, each speed for about ``seconds``.

    On a GPU, for methods that can (SupportsDeviceCoding), encode and decode go from a tensor on the device to buffers
    on the device and back, and to_bytes and from_bytes between that tensor and bytes in host memory. Elsewhere both
    are ``encode`` and ``decode`` of the contract, between host memory and host memory.
    """
    if not on_cpu(method) and isinstance(method, SupportsDeviceCoding):
        times = _on_device(method, kv, seconds)
    else:
        times = _on_host(method, kv, seconds)
    size = len(times.payload)
    if size == 0:
        raise LMCacheKitError(f"{choice.name} encoded {kv.nbytes} bytes as nothing")
    error = difference(kv, method.decode(memoryview(times.payload), kv.layout, kv.num_tokens, method.version))

    def speed(taken: float) -> float:
        return kv.nbytes / 1e9 / taken

    return CodecResult(
        method=choice.name,
        version=method.version,
        shape=kv.data.shape,
        dtype=kv.layout.dtype,
        options=msgspec.to_builtins(choice.options),
        device=method.device,
        raw_bytes=kv.nbytes,
        encoded_bytes=size,
        ratio=kv.nbytes / size,
        bits_per_element=8 * size / kv.data.size,
        nmse=error.nmse,
        max_abs_error=error.max_abs_error,
        non_finite_mismatches=error.non_finite_mismatches,
        encode_gbps=speed(times.encode),
        decode_gbps=speed(times.decode),
        to_bytes_gbps=speed(times.to_bytes),
        from_bytes_gbps=speed(times.from_bytes),
        first_encode_seconds=times.first_encode,
        first_decode_seconds=times.first_decode,
    )


def _on_host(method: CompressionMethod, kv: KVTensor, seconds: float) -> _Timings:
    def encode() -> bytes:
        return bytes(method.encode(kv))

    def decode() -> None:
        _read(method.decode(view, kv.layout, kv.num_tokens, method.version))

    first_encode, payload = timed(encode)
    view = memoryview(payload)
    first_decode, _ = timed(decode)
    encoding, decoding = median_seconds(encode, seconds), median_seconds(decode, seconds)
    return _Timings(encoding, decoding, encoding, decoding, first_encode, first_decode, payload)


def _on_device(method: Any, kv: KVTensor, seconds: float) -> _Timings:
    def to_bytes() -> Buffer:
        made: Buffer = method.encode_tensor(tensor)
        return made

    def from_bytes() -> Any:
        return method.decode_tensor(memoryview(payload), kv.layout, kv.num_tokens, method.version)

    tensor = method.device_tensor(kv)
    first_encode, made = timed(to_bytes)
    payload = bytes(made)
    first_decode, _ = timed(from_bytes)
    buffers = method.encode_device(tensor)
    method.decode_device(buffers)
    calls: tuple[Callable[[], object], ...] = (
        lambda: method.encode_device(tensor),
        lambda: method.decode_device(buffers),
        to_bytes,
        from_bytes,
    )
    encode, decode, to, back = (median_seconds(call, seconds) for call in calls)
    return _Timings(encode, decode, to, back, first_encode, first_decode, payload)


def _read(kv: KVTensor) -> int:
    """Touch every byte, so that a method which decodes lazily is not taken for a fast one."""
    raw = kv.data.reshape(-1).view(np.uint8)
    whole = raw.size // 8 * 8
    return int(np.bitwise_xor.reduce(raw[:whole].view(np.uint64))) ^ int(np.bitwise_xor.reduce(raw[whole:]))
