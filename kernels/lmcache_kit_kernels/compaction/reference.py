"""numpy implementation: the oracle of the other backends."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmcache_kit_kernels.checks import weighted_sum

__all__ = ["compact"]

Array = np.ndarray[Any, np.dtype[Any]]


def compact(scratch: Array, counts: Array, firsts: Array, total: int) -> tuple[Array, Array]:
    """See :func:`lmcache_kit_kernels.compaction.compact`; ``firsts`` uint32 ``[B, G]`` is the index of each run's first
    word in its block's check, ``total`` the number of words."""
    room = scratch.shape[2]
    words = np.empty(total, np.uint16)
    sums = np.empty(counts.shape, np.uint32)
    position = 0
    for place in np.ndindex(counts.shape):
        run = scratch[place][room - int(counts[place]) :]
        words[position : position + run.size] = run
        sums[place] = weighted_sum(run, int(firsts[place]))
        position += run.size
    return words, sums
