"""The method on a GPU: KV that is there, as PyTorch tensors, and KV in host memory by way of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.errors import InvalidRequestError
from lmcache_kit.kv.layout import KVLayout, KVTensor, numpy_dtype
from lmcache_kit_cachegen import device
from lmcache_kit_cachegen.container import HEADER_BYTES, WIDTHS_AT, head_size
from lmcache_kit_cachegen.host_link import HostLink
from lmcache_kit_cachegen.method import CacheGen
from lmcache_kit_cachegen.options import CacheGenOptions
from lmcache_kit_cachegen.recent import Recent

__all__ = ["GpuCacheGen", "Handed"]

Array = np.ndarray[Any, np.dtype[Any]]

_JOBS = 128  # shapes whose tables and directories are kept


_wait_for: Any = jax.block_until_ready  # jax leaves it without annotations


class Handed(NamedTuple):
    """A tensor on the device as jax sees it, and how it is coded."""

    blocks: jax.Array
    job: device.Job


class GpuCacheGen(CacheGen):
    """cachegen with its fused kernels on an NVIDIA GPU; the bytes are those of the CPU.

    Besides the contract, which has KV in host memory, it codes PyTorch tensors ``[L, P, T, H, D]`` (or
    ``[n, L, P, T, H, D]``, n chunks) that are on the GPU that jax computes on; they reach jax by DLPack, without a
    copy. What is to write a tensor must be on PyTorch's current stream, or done. Tensors that come back lie in memory
    of jax: what reads them must be on the current stream, or done, before they are let go. What the kernels are not
    made for (see :mod:`lmcache_kit_cachegen.device`) is coded on the CPU.

    Raises UnavailableError without a GPU, jax for it, or PyTorch with CUDA.
    """

    def __init__(self, options: CacheGenOptions) -> None:
        super().__init__(options)
        self._link = HostLink(jax.local_devices()[0].local_hardware_id or 0)
        self._shapes: Recent[tuple[Any, Any], tuple[KVLayout, int, int]] = Recent(_JOBS)
        self._to_write: Recent[tuple[KVLayout, int, int], device.Job] = Recent(_JOBS)
        self._to_read: Recent[tuple[bytes, bytes, int], device.Job] = Recent(_JOBS)
        self.device_name: str = jax.local_devices()[0].device_kind

    # --- tensors on the device ---------------------------------------------------------------------------------------

    def device_tensor(self, kv: KVTensor) -> Any:
        """``kv`` as a PyTorch tensor on the GPU."""
        return self._link.tensor(kv.data)

    def encode_device(self, tensor: Any) -> device.DeviceBuffers:
        """Coded buffers on the device; returns when they are done. Raises as :meth:`hand_over` does."""
        handed = self.hand_over(tensor)  # held until the device is done with it: it may be a copy
        found = self.launch_encode(handed)
        _wait_for(found.coded)
        return found

    def hand_over(self, tensor: Any) -> Handed:
        """A tensor as :meth:`launch_encode` takes it, for memory that is coded again and again: the same memory, with
        what its shape needs. What was to write it has been waited for.

        Raises InvalidRequestError for KV that is not coded on the GPU: chunks so short that a lane has more than
        four channels (below 128 tokens, below 256 at level 6), anchor_delta, none, or more than 2**30 elements.
        """
        layout, tokens, chunks = self._shape(tensor)
        job = self._job(layout, tokens, chunks) if chunks else None
        if job is None or not job.supported:
            raise InvalidRequestError(
                f"cachegen has no kernels for a tensor {list(tensor.shape)} with these options",
                hint="encode_tensor codes such KV on the CPU",
            )
        return Handed(self._blocks(tensor), job)

    def launch_encode(self, handed: Handed) -> device.DeviceBuffers:
        """Coded buffers on the device; returns at once, while the device works. ``handed`` is to be kept until then."""
        return device.encode(handed.blocks, handed.job)

    def decode_device(self, buffers: device.DeviceBuffers) -> Any:
        """The tensor ``[n * L * P, T, H * D]`` of buffers; returns when it is there."""
        return self._link.from_device(_wait_for(self.launch_decode(buffers)))

    def launch_decode(self, buffers: device.DeviceBuffers) -> jax.Array:
        """What :meth:`decode_device` returns, as a jax array; returns at once, while the device works."""
        return device.decode(buffers)

    def encode_tensor(self, tensor: Any) -> Buffer:
        """The payload of one chunk on the device."""
        (payload,) = self.encode_tensors(tensor[None])
        return payload

    def encode_tensors(self, tensors: Any) -> list[Buffer]:
        """Payloads of chunks ``[n, L, P, T, H, D]`` on the device; n that is a power of two up to 64 is one launch.

        Those of a launch share page-locked host memory, of which PyTorch gives powers of two: copy what is to be kept.
        """
        layout, tokens, chunks = self._shape(tensors)
        size = math.prod(layout.shape(tokens))
        tensors = tensors.detach() if tensors.ndim == 6 else tensors.detach()[None]
        launches = list(device.launches(chunks, size))
        if len(launches) == 1:
            return self._encode_tensors(tensors, layout, tokens)
        return [payload for some in launches for payload in self._encode_tensors(tensors[some], layout, tokens)]

    def _encode_tensors(self, tensors: Any, layout: KVLayout, tokens: int) -> list[Buffer]:
        """Those of one launch."""
        chunks = len(tensors)
        job = self._job(layout, tokens, chunks)
        payloads = device.payloads(self._blocks(tensors), job, self._link) if job.supported else None
        if payloads is None and chunks > 1:
            return [self._encode_tensors(tensor[None], layout, tokens)[0] for tensor in tensors]
        if payloads is None:
            return list(self.encode_on_host([KVTensor(layout, self._link.array(one)) for one in tensors]))
        return [payload.data for payload in payloads]

    def decode_tensor(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> Any:
        """The tensor ``[L, P, T, H, D]`` on the device of a payload. Raises BlobError as :meth:`decode` does."""
        return self.decode_tensors([payload], layout, num_tokens, version)[0]

    def decode_tensors(self, payloads: Sequence[memoryview], layout: KVLayout, num_tokens: int, version: int) -> Any:
        """Tensors ``[n, L, P, T, H, D]`` on the device of payloads, at least one, of one layout and length: one launch.

        Raises BlobError as :meth:`decode` does.
        """
        if not payloads:
            raise InvalidRequestError("cachegen was given no payloads to decode")
        tensors = self._read(payloads, layout, num_tokens, version)
        if tensors is not None:
            return tensors
        if len(payloads) > 1:  # of which some may be read on the device
            return self._link.stack([self.decode_tensor(payload, layout, num_tokens, version) for payload in payloads])
        kvs = self.decode_on_host(payloads, layout, [num_tokens] * len(payloads), version)
        return self._link.tensor(np.stack([kv.data for kv in kvs]))

    def _read(self, payloads: Sequence[memoryview], layout: KVLayout, num_tokens: int, version: int) -> Any:
        """What :meth:`decode_tensors` returns; None if the CPU path must read some of them."""
        arrays = [np.frombuffer(payload, np.uint8) for payload in payloads]
        job = self._job_to_read(arrays, layout, num_tokens, version)
        tensor = None if job is None else device.read(arrays, job, self._link)
        return None if tensor is None else tensor.view(len(payloads), *layout.shape(num_tokens))

    def _shape(self, tensor: Any) -> tuple[KVLayout, int, int]:
        """Layout, tokens and chunks of a tensor ``[(n,) L, P, T, H, D]``."""
        if tensor.ndim not in (5, 6) or not self._link.holds(tensor):
            raise InvalidRequestError(
                f"cachegen takes CUDA tensors [L, P, T, H, D] or [n, L, P, T, H, D] on {self._link.device}, not "
                f"{list(tensor.shape)} on {tensor.device}"
            )
        key = tensor.shape, tensor.dtype
        found = self._shapes.get(key)
        if found is None:
            layers, planes, tokens, heads, dim = tensor.shape[-5:]
            dtype = str(tensor.dtype).removeprefix("torch.")
            numpy_dtype(dtype)
            layout = KVLayout(layers, heads, dim, dtype, planes)  # type: ignore[arg-type]  # checked above
            found = self._shapes.keep(key, (layout, tokens, tensor.shape[0] if tensor.ndim == 6 else 1))
        return found

    def _blocks(self, tensor: Any) -> jax.Array:
        tokens, heads, dim = tensor.shape[-3:]
        blocks: jax.Array = self._link.to_jax(tensor.detach().contiguous().view(-1, tokens, heads * dim))
        return blocks

    def _job(self, layout: KVLayout, tokens: int, chunks: int) -> device.Job:
        key = layout, tokens, chunks
        found = self._to_write.get(key)
        return found or self._to_write.keep(key, device.Job(*self.header_and_settings(layout, tokens, chunks)))

    def _job_to_read(self, payloads: Sequence[Array], layout: KVLayout, tokens: int, version: int) -> device.Job | None:
        """The job of payloads that are like the first; None if the CPU path must read that one."""
        # The levels of the blocks, in the directory's entries, are part of how a payload is coded.
        levels = payloads[0][HEADER_BYTES + 1 : head_size(layout) - 4 : 16]
        header_bytes = payloads[0][:HEADER_BYTES].tobytes()
        # How wide numbers are differs from chunk to chunk, and a job is for all of that.
        key = header_bytes[: WIDTHS_AT + 2] + header_bytes[WIDTHS_AT + 4 :], levels.tobytes(), len(payloads)
        found = self._to_read.get(key)
        if found is None:
            _, directory = self.open(payloads[0].data, layout, tokens, version)
            settings = self.settings_to_read([directory] * len(payloads))
            if settings is None:
                return None
            job = device.Job(directory.header, settings)
            if not job.supported:
                return None
            found = self._to_read.keep(key, job)
        header = found.headers[0]
        matches = version == self.version and (header.layout, header.num_tokens) == (layout, tokens)
        return found if matches else None

    # --- the contract: KV in host memory -----------------------------------------------------------------------------

    def encode(self, kv: KVTensor) -> Buffer:
        (payload,) = self._encode([kv])
        return payload

    def _encode(self, kvs: Sequence[KVTensor]) -> list[Buffer]:
        if not self._job(kvs[0].layout, kvs[0].num_tokens, 1).supported:
            return list(self.encode_on_host(kvs))
        # Ordinary memory: a store may keep payloads for long, and page-locked memory is scarce.
        tensors = self._link.tensor(np.stack([kv.data for kv in kvs]))
        return [bytes(payload) for payload in self.encode_tensors(tensors)]

    def decode(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> KVTensor:
        (kv,) = self.decode_many([payload], layout, [num_tokens], version)
        return kv

    def decode_many(
        self, payloads: Sequence[memoryview], layout: KVLayout, num_tokens: Sequence[int], version: int
    ) -> list[KVTensor]:
        if len(payloads) != len(num_tokens):
            raise ValueError(f"there are {len(payloads)} payloads and {len(num_tokens)} numbers of tokens")
        kvs: list[Any] = [None] * len(payloads)
        for tokens in sorted(set(num_tokens)):
            alike = [place for place, own in enumerate(num_tokens) if own == tokens]
            for launch in device.launches(len(alike), math.prod(layout.shape(tokens)), self._compute.elements):
                some = alike[launch]
                found = self._to_host([payloads[place] for place in some], layout, tokens, version)
                for place, kv in zip(some, found, strict=True):
                    kvs[place] = kv
        return kvs

    def _to_host(
        self, payloads: Sequence[memoryview], layout: KVLayout, num_tokens: int, version: int
    ) -> list[KVTensor]:
        """KV of the payloads of one launch."""
        tensors = self._read(payloads, layout, num_tokens, version)
        if tensors is not None:
            return [KVTensor(layout, self._link.array(tensor)) for tensor in tensors]
        if len(payloads) == 1:
            return self.decode_on_host(payloads, layout, [num_tokens], version)
        return [kv for payload in payloads for kv in self._to_host([payload], layout, num_tokens, version)]
