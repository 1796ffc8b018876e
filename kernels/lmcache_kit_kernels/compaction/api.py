"""Put the runs of words together, on any backend.

A coder on a GPU cannot know where a group's run will start before all runs are coded. It writes each to the end of a
room that holds the longest run there can be (coding goes backwards); this operation moves them together.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lmcache_kit_kernels.backends import implementation

__all__ = ["compact"]

Array = np.ndarray[Any, np.dtype[Any]]


def compact(
    scratch: Array, counts: Array, first: Array | None = None, *, backend: str = "numpy"
) -> tuple[Array, Array]:
    """The runs one after another, and each run's part of its block's check.

    Args:
        scratch: uint16 ``[B, G, room]``; the run of group g of block b is the last ``counts[b, g]`` words of its room.
        counts: uint32 ``[B, G]``, each at most ``room``.
        first: integers ``[B]``: how many words come before the block's runs in its check; None: zeros.
        backend: one of ``backends_of("compaction")``; all agree.

    Returns:
        words uint16 ``[counts.sum()]``, and sums uint32 ``[B, G]``: over each run the sum of ``w * (2 * i + 1)`` mod
        ``2**32``, with i counted from ``first[b]`` plus the word's place among the words of its block. The sums of a
        block's groups add up to ``checks.weighted_sum(block's words, first[b])``.

    Raises ValueError for shapes that do not fit or a count above the room.
    """
    if scratch.ndim != 3 or scratch.dtype != np.uint16 or counts.shape != scratch.shape[:2]:
        raise ValueError(f"scratch must be uint16 [B, G, room] with counts [B, G], got {scratch.shape}, {counts.shape}")
    if counts.size and int(counts.max()) > scratch.shape[2]:
        raise ValueError(f"a run of {int(counts.max())} words does not fit a room of {scratch.shape[2]}")
    wide = counts.astype(np.int64)
    total = int(wide.sum())
    if total == 0:
        return np.zeros(0, np.uint16), np.zeros(counts.shape, np.uint32)
    firsts = np.cumsum(wide, axis=1) - wide
    if first is not None:
        if np.shape(first) != counts.shape[:1]:
            raise ValueError(f"first must have one entry for each of {counts.shape[0]} blocks, got {np.shape(first)}")
        firsts += np.asarray(first, np.int64)[:, None]
    words, sums = implementation("compaction", backend).compact(
        scratch, counts.astype(np.uint32), (firsts % (1 << 32)).astype(np.uint32), total
    )
    return words, sums
