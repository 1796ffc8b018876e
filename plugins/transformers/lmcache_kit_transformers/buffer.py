"""A KV cache of one sequence in one block of memory, in the layout that the rest of lmcache-kit stores."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch
from transformers.cache_utils import Cache

from lmcache_kit.kv import KVLayout, KVTensor

__all__ = ["KVBuffer"]

_TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STEP = 256


class KVBuffer(Cache):
    """Tokens of a sequence in ``[L, 2, capacity, H, D]``; grows by doubling, so a sequence costs O(n) copies in all.

    The strides inside a layer do not depend on the capacity. So the kernels see the same memory layout whether a
    prefix was computed or loaded, which bit-equal results need.

    Args:
        layout: shape of one token's KV.
        capacity: tokens to make room for at first.
        device: where it lives.
    """

    is_compileable = False

    def __init__(self, layout: KVLayout, capacity: int, device: torch.device) -> None:
        # The parent's constructor wants layer objects, and they differ between the versions of transformers.
        if isinstance(self, torch.nn.Module):
            torch.nn.Module.__init__(self)
        self.layers: list[Any] = []  # newer versions ask each layer whether it slides; none does
        self.layout = layout
        self.length = 0
        self._device = device
        self._data = self._allocate(capacity)

    def __len__(self) -> int:
        return self.layout.num_layers

    @property
    def capacity(self) -> int:
        """Tokens that fit before the next growth."""
        return int(self._data.shape[2])

    def reserve(self, tokens: int) -> None:
        """Make room for ``tokens`` in all."""
        if tokens > self.capacity:
            grown = self._allocate(max(tokens, 2 * self.capacity))
            grown[:, :, : self.length] = self._data[:, :, : self.length]
            self._data = grown

    def load(self, kv: KVTensor) -> None:
        """Begin with this KV."""
        self.reserve(kv.num_tokens)
        target = self._data[:, :, : kv.num_tokens]
        if self._device.type == "cpu":
            # Through numpy, because the source may be read-only memory, which torch warns about.
            np.copyto(_numpy(target), kv.data)
        else:
            bits = kv.data.view(np.int16) if kv.data.dtype == ml_dtypes.bfloat16 else kv.data
            target.copy_(torch.from_numpy(bits.copy()).view(target.dtype))
        self.length = kv.num_tokens

    def copy_out(self, start: int, stop: int) -> KVTensor:
        """A copy of tokens ``start`` to ``stop``."""
        part = self._data[:, :, start:stop].to("cpu", copy=True).contiguous()
        return KVTensor(self.layout, _numpy(part))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one layer's new keys and values ``[1, H, n, D]`` after ``length``; all of them so far, as views."""
        end = self.length + key_states.shape[2]
        layer = self._data[layer_idx]
        layer[0, self.length : end] = key_states[0].transpose(0, 1)
        layer[1, self.length : end] = value_states[0].transpose(0, 1)
        return layer[0, :end].transpose(0, 1).unsqueeze(0), layer[1, :end].transpose(0, 1).unsqueeze(0)

    def get_seq_length(self, layer_idx: int | None = 0) -> int:
        """Tokens before the ones being computed."""
        return self.length

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """No limit of its own."""
        return -1

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
        """Length and offset of the keys; an int or, in versions before 5, the positions of the queries."""
        count = query_length if isinstance(query_length, int) else int(query_length.shape[0])
        return self.length + count, 0

    def _allocate(self, capacity: int) -> torch.Tensor:
        rounded = -(-capacity // _STEP) * _STEP
        return torch.empty(self.layout.shape(rounded), dtype=_TORCH[self.layout.dtype], device=self._device)


def _numpy(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """The memory of a CPU tensor as an array; numpy learns of bfloat16 only through ml_dtypes."""
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
