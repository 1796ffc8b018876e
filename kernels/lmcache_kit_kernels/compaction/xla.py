"""XLA implementation: every word of the result is gathered from its place in the rooms."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["compact", "gather_runs"]

Array = np.ndarray[Any, np.dtype[Any]]


@functools.partial(jax.jit, static_argnames="size")
def gather_runs(scratch: jax.Array, counts: jax.Array, size: int) -> jax.Array:
    """The runs one after another in an array of ``size`` words, the rest of it unspecified; ``B * G * room`` must be
    below ``2**31``."""
    room = scratch.shape[2]
    ends = jnp.cumsum(counts.reshape(-1).astype(jnp.int32))
    index = jnp.arange(size, dtype=jnp.int32)
    run = jnp.searchsorted(ends, index, side="right", method="scan_unrolled")
    # A run ends where its room does: room r ends at word (r + 1) * room.
    source = (run + 1) * room - ends.at[run].get(mode="clip") + index
    return scratch.reshape(-1).at[source].get(mode="clip")


@jax.jit
def _sums(scratch: jax.Array, counts: jax.Array, firsts: jax.Array) -> jax.Array:
    room = scratch.shape[2]
    place = jnp.arange(room, dtype=jnp.uint32) - (room - counts[..., None])  # wraps before the run
    words = jnp.where(place < counts[..., None], scratch.astype(jnp.uint32), 0)
    return jnp.sum(words * (2 * (firsts[..., None] + place) + 1), axis=-1, dtype=jnp.uint32)


def compact(scratch: Array, counts: Array, firsts: Array, total: int) -> tuple[Array, Array]:
    """See :func:`lmcache_kit_kernels.compaction.compact`."""
    # The number of words differs from chunk to chunk: rounding it up keeps compiled programs few.
    words = gather_runs(scratch, counts, 1 << (total - 1).bit_length())
    return np.asarray(words)[:total], np.asarray(_sums(scratch, counts, firsts))
