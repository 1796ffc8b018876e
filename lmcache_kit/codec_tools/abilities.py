"""What a method may be able to do beyond its contract, as far as measuring and fitting use it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.kv.layout import KVLayout, KVTensor

__all__ = ["SupportsDeviceCoding", "SupportsFitting"]


@runtime_checkable
class SupportsFitting(Protocol):
    """Optional: learn from a model's KV."""

    def fit(self, samples: Iterable[KVTensor]) -> bytes: ...


@runtime_checkable
class SupportsDeviceCoding(Protocol):
    """Optional: code KV that is on a device, into buffers there or into bytes in host memory."""

    def device_tensor(self, kv: KVTensor) -> Any: ...

    def encode_device(self, tensor: Any) -> Any: ...

    def decode_device(self, buffers: Any) -> Any: ...

    def encode_tensor(self, tensor: Any) -> Buffer: ...

    def decode_tensor(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> Any: ...
