"""Bytes between host memory and the GPU, through page-locked memory that PyTorch keeps.

A copy from ordinary memory is staged by the driver at a fraction of the link's speed; PyTorch has an allocator of
page-locked memory that can be had without waiting for the operating system.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

import numpy as np

from lmcache_kit.errors import UnavailableError
from lmcache_kit.kv.layout import numpy_dtype

__all__ = ["HostLink", "ToHost"]

Array = np.ndarray[Any, np.dtype[Any]]

_KEPT_BYTES = 256 << 20  # of memory on the device for payloads, kept for the next ones


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
        self._kept: list[_Rows] = []
        self._lock = Lock()

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

    def to_host(self, words: Any, size: int) -> ToHost:
        """The first ``size`` bytes of a jax array of uint16, on their way to page-locked memory; the array need not be
        there yet."""
        return ToHost(self._torch, self._torch.from_dlpack(words).view(self._torch.uint8), size, self._settle)

    @contextmanager
    def to_device(self, payloads: Sequence[Array], room: int) -> Iterator[_Rows]:
        """Payloads (uint8) as rows uint8 ``[n, room]`` on the device, anything behind them, on their way there. What
        reads the rows must be done at the end of the context."""
        torch = self._torch
        rows = self._take(len(payloads), room)
        for target, payload in zip(rows.tensor, payloads, strict=True):
            source = torch.from_numpy(_writeable(payload))
            if not source.is_pinned():
                # PyTorch's copy uses several threads, without which it would be slower than the link; the next payload
                # is staged while this one is on its way.
                source = torch.empty(payload.size, dtype=torch.uint8, pin_memory=True).copy_(source)
            target[: payload.size].copy_(source, non_blocking=True)
        yield rows
        rows.wait()
        self._keep(rows)

    def _take(self, count: int, room: int) -> _Rows:
        with self._lock:
            for place, rows in enumerate(self._kept):
                if rows.tensor.shape == (count, room):
                    return self._kept.pop(place)
        tensor = self._torch.empty((count, room), dtype=self._torch.uint8, device=self.device)
        return _Rows(tensor, self.to_jax(tensor), self._settle)

    def _keep(self, rows: _Rows) -> None:
        with self._lock:
            self._kept.append(rows)
            while sum(kept.tensor.nbytes for kept in self._kept) > _KEPT_BYTES:
                self._kept.pop(0)

    def tensor(self, array: Array) -> Any:
        """A torch tensor on the device with the values of ``array``, of bfloat16, float16 or float32."""
        torch = self._torch
        bits = np.ascontiguousarray(array).view(f"i{array.itemsize}")
        host = torch.empty(bits.shape, dtype=torch.from_numpy(bits[:0]).dtype, pin_memory=True)
        host.numpy()[...] = bits
        dtype = getattr(torch, array.dtype.name)
        return host.to(self.device, non_blocking=True).view(dtype)

    def from_device(self, array: Any) -> Any:
        """A jax array as a torch tensor, without a copy; what PyTorch does with it waits for it on the device."""
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


class ToHost:
    """Bytes on their way to page-locked memory; see :meth:`HostLink.to_host`."""

    def __init__(self, torch: Any, source: Any, size: int, settle: Callable[[], None]) -> None:
        self._torch, self._source, self._settle = torch, source, settle
        self._host = self._started(min(size, source.numel()))

    def _started(self, size: int) -> Any:
        host = self._torch.empty(size, dtype=self._torch.uint8, pin_memory=True)
        if size:
            host.copy_(self._source[:size], non_blocking=True)
        return host

    def wait(self, size: int) -> Array:
        """The first ``size`` bytes, uint8, when they are there; those not on their way yet take a copy of their own."""
        if size > self._host.numel():
            self._host = self._started(size)
        self._settle()
        host: Array = self._host.numpy()
        return host[:size]


class _Rows:
    """Memory on the device, as PyTorch writes it and as jax reads it."""

    def __init__(self, tensor: Any, array: Any, settle: Callable[[], None]) -> None:
        self.tensor, self._array, self._settle = tensor, array, settle

    def wait(self) -> Any:
        """The jax array, with all that PyTorch was to write there."""
        self._settle()
        return self._array


def _writeable(array: Array) -> Array:
    """``array`` uint8 with leave to write, of which no use is made: PyTorch takes no other arrays without a warning."""
    if array.flags.writeable or not array.size:
        return array
    memory = (ctypes.c_uint8 * array.size).from_address(array.ctypes.data)
    return np.ctypeslib.as_array(memory)
