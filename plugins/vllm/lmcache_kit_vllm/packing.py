"""Where vLLM's CPU attention puts each element of K and V in a block, found out by asking it.

The order depends on the processor and on vLLM's version: plain on some, interleaved for AVX-512 or AMX on others. It
is read off from what vLLM's own operator writes, so that no version's order is written down here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["WriteToCache", "element_places"]

WriteToCache = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""Writes K and V ``[T, H, D]`` into the caches of K and V ``[B, H, N, D]`` at slots ``[T]``, as the backend does."""

_BASE = 64
"""Digits of an element's number that every KV dtype holds exactly."""


def element_places(
    write: WriteToCache, *, block_size: int, head_dim: int, dtype: torch.dtype, num_heads: int = 1
) -> torch.Tensor:
    """Index in the ``N * 2 * D`` elements of a block and head, ``[2, N, D]``, of each plane's tokens' elements.

    Args:
        write: the backend's operator.
        block_size: N, tokens in a block.
        head_dim: D.
        dtype: of the cache.
        num_heads: heads to write; each has the same order.

    Raises ValueError when the order is not the same for each head, or elements are missing: then this backend's
    blocks cannot be read token by token.
    """
    count = 2 * block_size * head_dim
    numbers = torch.arange(count).view(2, block_size, 1, head_dim).expand(-1, -1, num_heads, -1)
    found = torch.zeros((num_heads, count), dtype=torch.int64)
    scale = 1
    while scale < count:
        # One spare block in front: a backend may take block 0 for a place that nobody reads.
        cache = torch.zeros((2, num_heads, 2 * block_size, head_dim), dtype=dtype)
        key_cache, value_cache = cache.chunk(2, dim=2)
        key, value = (numbers // scale % _BASE).to(dtype)
        slots = torch.arange(block_size, 2 * block_size)
        write(key.contiguous(), value.contiguous(), key_cache, value_cache, slots)
        found += cache[1].flatten(1).to(torch.int64) * scale
        scale *= _BASE
    if not torch.equal(found, found[:1].expand_as(found)):
        raise ValueError("the heads of a block are arranged differently")
    places = torch.empty(count, dtype=torch.int64)
    if not torch.equal(found[0].sort().values, torch.arange(count)):
        raise ValueError("elements of K and V cannot be told apart in a block")
    places[found[0]] = torch.arange(count)
    return places.view(2, block_size, head_dim)
