"""XLA implementation: a scan over steps. The words of a run are gathered on the host."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmcache_kit_kernels.rans.api import LOWER_BOUND, groups_of
from lmcache_kit_kernels.tables import PROBABILITY_BITS, TableSet, decoding_table

__all__ = ["decode", "decode_traced", "encode", "encode_traced", "room_for", "runs_of", "starts_of"]

Array = np.ndarray[Any, np.dtype[Any]]


def _flat(array: jax.Array) -> jax.Array:
    """``[B, R, N]`` as ``[R, B * N]``."""
    return jnp.swapaxes(array, 0, 1).reshape(array.shape[1], -1)


@jax.jit
def encode_traced(
    symbols: jax.Array, chosen: jax.Array, frequencies: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """States ``[B * N]``, and per step and lane a word ``[S, B * N]`` and whether it belongs to the run.

    Takes symbols ``[B, S, N]``, chosen ``[B, K, N]`` and uint32 frequencies ``[32, levels]``.
    """
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


def runs_of(words: jax.Array, full: jax.Array, blocks: int, group: int) -> tuple[Array, Array]:
    """Counts ``[B, G]`` and the words of the runs, out of the candidates ``[S, B * N]`` that :func:`encode_traced`
    returns. On the host: a CPU compresses an array several times faster than XLA's scatter does."""
    steps, lanes = words.shape[0], words.shape[1] // blocks
    groups, missing = groups_of(lanes, group), -lanes % group
    # [S, B, N] to the order of the runs: block, group, step, lane.
    candidates, taken = (
        np.pad(np.asarray(column).reshape(steps, blocks, lanes), ((0, 0), (0, 0), (0, missing)))
        .reshape(steps, blocks, groups, group)
        .transpose(1, 2, 0, 3)
        for column in (words, full)
    )
    return np.count_nonzero(taken, axis=(2, 3)).astype(np.uint32), candidates[taken]


def encode(symbols: Array, chosen: Array, tables: TableSet, group: int) -> tuple[Array, Array, Array]:
    """See :func:`lmcache_kit_kernels.rans.encode`; returns states, counts and words."""
    blocks, _, lanes = symbols.shape
    state, words, full = encode_traced(symbols, chosen, tables.frequencies.astype(np.uint32))
    return np.asarray(state).reshape(blocks, lanes), *runs_of(words, full, blocks, group)


@functools.partial(jax.jit, static_argnames=("steps", "group"))
def decode_traced(
    states: jax.Array,
    starts: jax.Array,
    words: jax.Array,
    chosen: jax.Array,
    table: jax.Array,
    *,
    steps: int,
    group: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Symbols ``[B, steps, N]``, final states ``[B, N]`` and where each run ended ``[B, G]``.

    Takes states ``[B, N]``, int32 starts ``[B, G]``, words, chosen ``[B, K, N]`` and the decoding table.
    """
    blocks, lanes = states.shape
    grouped = (blocks, groups_of(lanes, group), group)
    padding = ((0, 0), (0, -lanes % group))
    real = (jnp.arange(grouped[1] * group) < lanes).reshape(grouped[1:])
    base = jnp.pad(chosen, (padding[0], (0, 0), padding[1])).swapaxes(0, 1).reshape(-1, *grouped)
    base = base.astype(jnp.int32) << PROBABILITY_BITS
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

    (state, position), symbols = jax.lax.scan(
        step, (jnp.pad(states, padding).reshape(grouped), starts), jnp.arange(steps)
    )
    symbols = symbols.reshape(steps, blocks, -1)[:, :, :lanes].swapaxes(0, 1)
    return symbols, state.reshape(blocks, -1)[:, :lanes], position


def room_for(words: Array) -> Array:
    """``words`` in an array of a power of two: their number differs from chunk to chunk, and each length of an array is
    a program of its own."""
    room = np.zeros(1 << max(1, int(words.size) - 1).bit_length(), dtype=np.uint16)
    room[: words.size] = words
    return room


def starts_of(counts: Array) -> Array:
    """int32 ``[B, G]``: where each run starts."""
    starts: Array = (np.cumsum(counts, dtype=np.int64).reshape(counts.shape) - counts).astype(np.int32)
    return starts


def decode(
    states: Array, counts: Array, words: Array, chosen: Array, tables: TableSet, steps: int, group: int
) -> tuple[Array, Array, Array]:
    """See :func:`lmcache_kit_kernels.rans.decode`; returns symbols, final states and the words each group took."""
    starts = starts_of(counts)
    symbols, final, last = decode_traced(
        states, starts, room_for(words), chosen, decoding_table(tables), steps=steps, group=group
    )
    return np.asarray(symbols), np.asarray(final), (np.asarray(last) - starts).astype(np.uint32)
