"""Pallas implementation, on the GPU."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from lmcache_kit_kernels.compaction import pallas_kernel

__all__ = ["compact"]

Array = np.ndarray[Any, np.dtype[Any]]


def compact(
    scratch: Array, counts: Array, firsts: Array, total: int, *, interpret: bool = False
) -> tuple[Array, Array]:
    """See :func:`lmcache_kit_kernels.compaction.compact`."""
    starts, _, fills = pallas_kernel.run_starts(jnp.asarray(counts), even=False)
    words, sums = pallas_kernel.compact(
        jnp.asarray(scratch), jnp.asarray(counts), starts, jnp.asarray(firsts), fills, interpret=interpret
    )
    return np.asarray(words)[:total], np.asarray(sums)
