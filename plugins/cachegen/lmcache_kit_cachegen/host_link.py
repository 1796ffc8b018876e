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

__all__ = ["HostLink"]

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

    def to_host(self, words: Any, payloads: Sequence[tuple[Array, int, int]]) -> list[Array]:
        """Payloads, uint8 in page-locked memory; all copies are under way together.

        Args:
            words: jax array of uint16.
            payloads: of each a head on the host, and first byte and number of bytes of what follows it in ``words``.
        """
        torch = self._torch
        device = torch.as_tensor(_Memory(words, (2 * words.size,), "|u1"), device=self.device)
        results = []
        for head, first, size in payloads:
            host = torch.empty(head.size + size, dtype=torch.uint8, pin_memory=True)
            host[head.size :].copy_(device[first : first + size], non_blocking=True)
            results.append(host.numpy())
            results[-1][: head.size] = head
        self._settle()
        return results

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
        """A jax array of bfloat16, float16 or float32 that is there as a torch tensor, without a copy."""
        bits = _Memory(array, array.shape, f"<i{array.dtype.itemsize}")
        return self._torch.as_tensor(bits, device=self.device).view(getattr(self._torch, array.dtype.name))

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


class _Memory:
    """Memory of a jax array that is there, for PyTorch to share: by DLPack a new array takes several times as long."""

    def __init__(self, array: Any, shape: tuple[int, ...], typestr: str) -> None:
        array.block_until_ready()
        self._array = array
        place = (array.unsafe_buffer_pointer(), False)
        self.__cuda_array_interface__ = {"shape": shape, "typestr": typestr, "data": place, "version": 2}


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
