"""What a method may be able to do beyond its contract, as far as measuring uses it."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.kv.layout import KVLayout, KVTensor

__all__ = ["SupportsDeviceCoding"]


@runtime_checkable
class SupportsDeviceCoding(Protocol):
    """Optional: code KV that is on a device. Every call returns when its work is done."""

    def device_tensor(self, kv: KVTensor) -> Any:
        """``kv`` on the device."""
        ...

    def encode_device(self, tensor: Any) -> Any:
        """A tensor on the device as buffers on the device."""
        ...

    def decode_device(self, buffers: Any) -> Any:
        """The tensor on the device that :meth:`encode_device` made the buffers of, as far as the method keeps it."""
        ...

    def encode_tensor(self, tensor: Any) -> Buffer:
        """The payload, in host memory, of a tensor on the device."""
        ...

    def decode_tensor(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> Any:
        """The tensor on the device of a payload in host memory."""
        ...
