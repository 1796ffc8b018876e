"""XLA implementation: a scan over steps. The words of a run are gathered on the host."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmcache_kit_kernels.rans.api import LOWER_BOUND, groups_of
from lmcache_kit_kernels.tables import PROBABILITY_BITS, TableSet, decoding_table

__all__ = ["decode", "encode"]

Array = np.ndarray[Any, np.dtype[Any]]


def _flat(array: jax.Array) -> jax.Array:
    """``[B, R, N]`` as ``[R, B * N]``."""
    return jnp.swapaxes(array, 0, 1).reshape(array.shape[1], -1)


@jax.jit
def _encode(symbols: jax.Array, chosen: jax.Array, frequencies: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    levels = frequencies.shape[1]
    base = _flat(chosen).astype(jnp.int32) * levels
    start = jnp.cumsum(frequencies, axis=1) - frequencies
    packed = (frequencies | start << 16).reshape(-1)

    def step(state: jax.Array, xs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        number, symbol = xs
        entry = packed[base[number % base.shape[0]] + symbol]
        frequency = entry & 0xFFFF
        full = state >= frequency << (32 - PROBABILITY_BITS)
        word = state.astype(jnp.uint16)
        state = jnp.where(full, state >> 16, state)
        quotient = state // frequency
        state = state + quotient * ((1 << PROBABILITY_BITS) - frequency) + (entry >> 16)
        return state, (word, full)

    flat = _flat(symbols)
    state = jnp.full(flat.shape[1], LOWER_BOUND, dtype=jnp.uint32)
    state, (words, full) = jax.lax.scan(step, state, (jnp.arange(flat.shape[0]), flat), reverse=True)
    return state, words, full


def encode(symbols: Array, chosen: Array, tables: TableSet, group: int) -> tuple[Array, Array, Array]:
    """See :func:`lmcache_kit_kernels.rans.encode`; returns states, counts and words."""
    blocks, steps, lanes = symbols.shape
    state, *columns = _encode(symbols, chosen, tables.frequencies.astype(np.uint32))
    # [S, B, N] to the order of the runs: block, group, step, lane.
    groups, missing = groups_of(lanes, group), -lanes % group
    words, full = (
        np.pad(np.asarray(column).reshape(steps, blocks, lanes), ((0, 0), (0, 0), (0, missing)))
        .reshape(steps, blocks, groups, group)
        .transpose(1, 2, 0, 3)
        for column in columns
    )
    counts = np.count_nonzero(full, axis=(2, 3)).astype(np.uint32)
    return np.asarray(state).reshape(blocks, lanes), counts, words[full]


@functools.partial(jax.jit, static_argnames=("steps", "lanes"))
def _decode(
    states: jax.Array,
    position: jax.Array,
    words: jax.Array,
    chosen: jax.Array,
    table: jax.Array,
    steps: int,
    lanes: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """States ``[B, G, g]``, positions ``[B, G]``, chosen ``[K, B, G, g]``; ``lanes`` of each block are real."""
    _, groups, group = states.shape
    real = (jnp.arange(groups * group) < lanes).reshape(groups, group)
    base = chosen.astype(jnp.int32) << PROBABILITY_BITS
    flat_table = table.reshape(-1)

    def step(carry: tuple[jax.Array, jax.Array], number: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        state, position = carry
        slot = (state & ((1 << PROBABILITY_BITS) - 1)).astype(jnp.int32)
        entry = flat_table[base[number % base.shape[0]] + slot]
        state = ((entry >> 7) & 1023) * (state >> PROBABILITY_BITS) + (entry >> 17)
        low = (state < LOWER_BOUND) & real
        rank = jnp.cumsum(low, axis=-1, dtype=jnp.int32)
        # A damaged run may ask for words beyond the end; the caller finds that its count differs.
        word = words.at[position[..., None] + rank - 1].get(mode="clip").astype(jnp.uint32)
        state = jnp.where(low, state << 16 | word, state)
        return (state, position + rank[..., -1]), (entry & 127).astype(jnp.uint8)

    (state, position), symbols = jax.lax.scan(step, (states, position), jnp.arange(steps))
    return symbols, state, position


def decode(
    states: Array, counts: Array, words: Array, chosen: Array, tables: TableSet, steps: int, group: int
) -> tuple[Array, Array, Array]:
    """See :func:`lmcache_kit_kernels.rans.decode`; returns symbols, final states and the words each group took."""
    blocks, lanes = states.shape
    grouped = (blocks, groups_of(lanes, group), group)
    padding = ((0, 0), (0, -lanes % group))
    first = (np.cumsum(counts, dtype=np.int64).reshape(counts.shape) - counts).astype(np.int32)
    # The number of words differs from chunk to chunk: rounding it up keeps compiled programs few.
    room = np.zeros(1 << max(1, int(words.size) - 1).bit_length(), dtype=np.uint16)
    room[: words.size] = words
    symbols, final, last = _decode(
        np.pad(states, padding).reshape(grouped),
        first,
        room,
        np.pad(chosen, (padding[0], (0, 0), padding[1])).swapaxes(0, 1).reshape(-1, *grouped),
        decoding_table(tables),
        steps,
        lanes,
    )
    flat = np.asarray(symbols).reshape(steps, blocks, -1)[:, :, :lanes]
    return (
        np.ascontiguousarray(flat.transpose(1, 0, 2)),
        np.asarray(final).reshape(blocks, -1)[:, :lanes],
        (np.asarray(last) - first).astype(np.uint32),
    )
