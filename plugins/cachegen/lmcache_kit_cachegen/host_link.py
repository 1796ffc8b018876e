"""Bytes between host memory and the GPU, through page-locked memory that PyTorch keeps.

A copy from ordinary memory is staged by the driver at a fraction of the link's speed; PyTorch has an allocator of
page-locked memory that can be had without waiting for the operating system.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmcache_kit.errors import UnavailableError
from lmcache_kit.kv.layout import numpy_dtype

__all__ = ["HostLink"]

Array = np.ndarray[Any, np.dtype[Any]]


class HostLink:
    """Copies for one GPU, PyTorch's ``cuda:index``, on PyTorch's current stream there.

    Raises UnavailableError if PyTorch is not there or was built without CUDA.
    """

    def __init__(self, index: int = 0) -> None:
        try:
            torch: Any = importlib.import_module("torch")
        except ImportError:
            torch = None
        if torch is None or not torch.cuda.is_available():
            raise UnavailableError(
                "cachegen on a GPU needs PyTorch with CUDA beside jax: it owns the KV and the page-locked memory",
                hint="pip install torch, from an index with CUDA builds",
            )
        self._torch = torch
        self.device = torch.device("cuda", index)

    def holds(self, tensor: Any) -> bool:
        """Whether a tensor is on this GPU."""
        return bool(tensor.device == self.device)

    def _settle(self) -> None:
        self._torch.cuda.current_stream(self.device).synchronize()

    def to_jax(self, tensor: Any) -> Any:
        """A torch tensor on the device as a jax array, without a copy; what was to write the tensor has been waited
        for."""
        import jax

        self._settle()
        return jax.dlpack.from_dlpack(_Settled(tensor))

    def to_host(self, words: Any, payloads: Sequence[tuple[Array, int, int]]) -> list[Array]:
        """Payloads, uint8 in page-locked memory; all copies are under way together.

        Args:
            words: jax array of uint16.
            payloads: of each a head on the host, and first byte and number of bytes of what follows it in ``words``.
        """
        torch = self._torch
        device = torch.from_dlpack(words).view(torch.uint8)
        results = []
        for head, first, size in payloads:
            host = torch.empty(head.size + size, dtype=torch.uint8, pin_memory=True)
            host[head.size :].copy_(device[first : first + size], non_blocking=True)
            results.append(host.numpy())
            results[-1][: head.size] = head
        self._settle()
        return results

    def to_device(self, payloads: Sequence[Array], room: int) -> Any:
        """Payloads (uint8) as rows of a torch tensor uint8 ``[n, room]`` on the device, anything behind them."""
        torch = self._torch
        staged = torch.empty((len(payloads), room), dtype=torch.uint8, pin_memory=True)
        device = torch.empty((len(payloads), room), dtype=torch.uint8, device=self.device)
        for row, target, payload in zip(staged, device, payloads, strict=True):
            source = torch.from_numpy(_writeable(payload))
            if not source.is_pinned():
                # PyTorch's copy uses several threads, without which it would be slower than the link; the next payload
                # is staged while this one is on its way.
                source = row[: payload.size].copy_(source)
            target[: payload.size].copy_(source, non_blocking=True)
        return device

    def tensor(self, array: Array) -> Any:
        """A torch tensor on the device with the values of ``array``, of bfloat16, float16 or float32."""
        torch = self._torch
        bits = np.ascontiguousarray(array).view(f"i{array.itemsize}")
        host = torch.empty(bits.shape, dtype=torch.from_numpy(bits[:0]).dtype, pin_memory=True)
        host.numpy()[...] = bits
        dtype = getattr(torch, array.dtype.name)
        return host.to(self.device, non_blocking=True).view(dtype)

    def from_device(self, array: Any) -> Any:
        """A jax array as a torch tensor, without a copy."""
        return self._torch.from_dlpack(array)

    def stack(self, tensors: Sequence[Any]) -> Any:
        """Tensors of one shape as one, along a new first axis."""
        stacked = self._torch.stack(list(tensors))
        self._settle()  # their memory may be that of jax, which does not wait for PyTorch before it uses it again
        return stacked

    def array(self, tensor: Any) -> Array:
        """A numpy array with the values of a torch tensor on the device."""
        torch = self._torch
        integers = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
        host = torch.empty(tensor.shape, dtype=integers, pin_memory=True)
        host.copy_(tensor.contiguous().view(integers))
        result: Array = host.numpy().view(numpy_dtype(str(tensor.dtype).removeprefix("torch.")))
        return result


class _Settled:
    """A tensor whose values are there: DLPack's negotiation of streams would cost more than coding a chunk does."""

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor

    def __dlpack__(self, **how: Any) -> Any:
        return self._tensor.__dlpack__(**{**how, "stream": -1})  # DLPack: -1 means that no stream has to wait

    def __dlpack_device__(self) -> Any:
        return self._tensor.__dlpack_device__()


def _writeable(array: Array) -> Array:
    """``array`` uint8 with leave to write, of which no use is made: PyTorch takes no other arrays without a warning."""
    if array.flags.writeable or not array.size:
        return array
    memory = (ctypes.c_uint8 * array.size).from_address(array.ctypes.data)
    return np.ctypeslib.as_array(memory)
