"""Between vLLM's paged blocks and KV by token: one layer's blocks of one rank.

vLLM gives a connector one tensor a layer, ``[B, H, N, C]``: blocks, the rank's KV heads, tokens of a block, and the
content of a token and head. What the content is depends on the attention backend:

- on GPUs the K of a token and head and then its V, or one latent vector for multi-head latent attention;
- on CPUs a block and head holds N vectors of K, arranged for the processor's matrix instructions, and then N of V.

All copies are of bits: what a save reads, a load writes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

import torch

__all__ = ["LayerBlocks", "PackedBlocks", "TokenBlocks", "bits_of", "slots"]

_BITS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's elements as integers of their width, so that copies keep every NaN."""
    return tensor.view(_BITS[tensor.element_size()])


def slots(
    blocks: Sequence[int], start: int, stop: int, *, block_size: int, kernel_block_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where tokens ``start`` to ``stop`` lie: index of the tensor's block and of the token in it, each ``[T]``, int64.

    Args:
        blocks: ids of the scheduler's blocks, from the block of ``start`` on.
        start, stop: tokens of the request.
        block_size: tokens in a block of the scheduler.
        kernel_block_size: tokens in a block of the tensor; a divisor of ``block_size``.
    """
    tokens = torch.arange(start, stop) - start // block_size * block_size
    table = torch.tensor(blocks, dtype=torch.int64)
    ratio = block_size // kernel_block_size
    within = tokens % block_size
    return table[tokens // block_size] * ratio + within // kernel_block_size, within % kernel_block_size


class LayerBlocks(ABC):
    """The blocks of one layer on one rank.

    Args:
        cache: what vLLM registered for the layer, ``[B, H, N, C]``.
    """

    def __init__(self, cache: torch.Tensor) -> None:
        self.cache = cache

    @property
    def block_size(self) -> int:
        """Tokens in a block of the tensor."""
        return int(self.cache.shape[2])

    @abstractmethod
    def read(self, block: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """A copy of the bits of the KV of the tokens at these places, ``[P, T, H, D]`` integers."""

    @abstractmethod
    def write(self, block: torch.Tensor, offset: torch.Tensor, kv: torch.Tensor) -> None:
        """Have these places hold the bits ``kv``, ``[P, T, H, D]`` integers."""


class TokenBlocks(LayerBlocks):
    """Blocks in which the content of a token and head is its KV, one plane after the other."""

    def __init__(self, cache: torch.Tensor, planes: int) -> None:
        super().__init__(cache)
        *head, content = cache.shape
        # [B, N, H, P, D]
        self._tokens = bits_of(cache).view(*head, planes, content // planes).transpose(1, 2)

    def read(self, block: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        return self._tokens[block, offset].permute(2, 0, 1, 3)

    def write(self, block: torch.Tensor, offset: torch.Tensor, kv: torch.Tensor) -> None:
        self._tokens[block, offset] = kv.permute(1, 2, 0, 3)


class PackedBlocks(LayerBlocks):
    """Blocks in which the elements of K and of V lie in an order of their own.

    Args:
        cache: what vLLM registered for the layer, ``[B, H, N, 2 * D]``.
        places: index in the ``N * 2 * D`` elements of a block and head, ``[2, N, D]``, of the element of plane,
            token and dimension.
    """

    def __init__(self, cache: torch.Tensor, places: torch.Tensor) -> None:
        super().__init__(cache)
        self._elements = bits_of(cache).flatten(2)  # a view: heads of a block lie one after another
        assert self._elements.data_ptr() == cache.data_ptr(), "the interior of a block has no gaps"
        self._places = places

    def read(self, block: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        kv = [self._elements[block[:, None], :, self._places[plane, offset]] for plane in range(2)]
        return torch.stack(kv).transpose(2, 3)  # [P, T, D, H] to [P, T, H, D]

    def write(self, block: torch.Tensor, offset: torch.Tensor, kv: torch.Tensor) -> None:
        for plane in range(2):
            self._elements[block[:, None], :, self._places[plane, offset]] = kv[plane].transpose(1, 2)
