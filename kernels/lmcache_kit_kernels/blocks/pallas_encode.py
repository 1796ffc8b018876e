"""The encoding kernel (Pallas, Triton backend): each warp codes the run of 32 lanes.

A warp reads its 32 * fold channels of all tokens up to three times: for the centres, for the spread that chooses a
table, and to code; after the first time they come from a cache near by. Symbols never go to memory. Tokens are taken
some at a time, with their loads in front, so that the latency of memory is paid once for all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from lmcache_kit_kernels.blocks.config import CONFIG
from lmcache_kit_kernels.blocks.pallas_warp import (
    GROUP_LANES,
    LANES,
    exact_product,
    quotient,
    rank_and_total,
    rounded,
)
from lmcache_kit_kernels.pallas_tools import shape_of, unsigned_of, widen
from lmcache_kit_kernels.tables import PROBABILITY_BITS

__all__ = ["SYMBOLS", "encode", "over_tokens", "words_per_lane"]

SYMBOLS = 128
"""Entries of a table in the kernel's arrays, whatever its alphabet."""

_START = 1 << 16


def words_per_lane(steps: int) -> int:
    """An upper bound: a step adds at most ``PROBABILITY_BITS`` bits and a hair to the state."""
    return steps * PROBABILITY_BITS // 16 + 2


def over_tokens(
    begin: int, end: int, body: Callable[[Sequence[Any], Any], Any], carry: Any, *, reverse: bool = False
) -> Any:
    """``carry = body([t, t + 1, ...], carry)`` for tokens ``begin`` to ``end``, some at once, the odd ones last."""
    at_once = CONFIG.tokens_at_once
    whole, rest = divmod(end - begin, at_once)
    tail = [begin + whole * at_once + i for i in range(rest)]
    if reverse and rest:
        carry = body(tail, carry)

    def strip(number: Any, carry: Any) -> Any:
        first = begin + (whole - 1 - number if reverse else number) * at_once
        return body([first + i for i in range(at_once)], carry)

    if whole:
        carry = jax.lax.fori_loop(0, whole, strip, carry)
    return body(tail, carry) if rest and not reverse else carry


def _kernel(
    bits_ref: Any,  # [B, T, C] uint
    row_ref: Any,  # [B, T] float32: lmcache middle / maximum; uniform 2**-exponent
    inverse_ref: Any,  # [B] float32, uniform
    offsets_ref: Any,  # [B, C] float32, uniform
    info_ref: Any,  # [B, 4] int32: levels, alphabet, 0, whether usable
    thresholds_ref: Any,  # [A, 32] int32, the last never reached
    cover_ref: Any,  # [A, SYMBOLS] int32
    entries_ref: Any,  # [A * 32 * SYMBOLS] uint32: frequency | start << 10
    reciprocals_ref: Any,  # [A * 32 * SYMBOLS] uint32
    states_ref: Any,
    counts_ref: Any,
    centres_ref: Any,
    tables_ref: Any,
    words_ref: Any,  # [B, G, room] uint16: each run at the end of its room
    *,
    dtype: Any,
    uniform: bool,
    tokens: int,
    lanes: int,
    fold: int,
    room: int,
    interpret: bool,
) -> None:
    block = pl.program_id(0)
    lane = pl.program_id(1) * LANES + jnp.arange(LANES, dtype=jnp.int32)
    group = lane // GROUP_LANES
    real = lane < lanes
    channels = [part * lanes + lane for part in range(fold)]
    levels, alphabet = info_ref[block, 0], info_ref[block, 1]
    zero = info_ref[block, 2].astype(jnp.uint32)
    kept = real & (info_ref[block, 3] != 0)
    middle = levels // 2
    inverse: Any = inverse_ref[block] if uniform else None
    origins = [plgpu.load(offsets_ref.at[block, c], mask=real, other=0.0) for c in channels] if uniform else []

    def rows(some: Sequence[Any]) -> list[tuple[jax.Array, list[jax.Array]]]:
        return [
            (row_ref[block, t], [plgpu.load(bits_ref.at[block, t, c], mask=kept, other=0) for c in channels])
            for t in some
        ]

    def symbol(bits: jax.Array, row: jax.Array, part: int) -> jax.Array:
        """int32: 0 to levels - 1, or around 0 for the uniform quantizer."""
        wide = widen(bits, dtype)
        if uniform:
            moved = exact_product(wide, inverse, zero, interpret=interpret) - origins[part]
            return rounded(moved * row)
        scaled = exact_product(wide, row, zero, interpret=interpret)
        return rounded(scaled + middle.astype(jnp.float32))

    nothing = [jnp.zeros((LANES,), jnp.int32)] * fold
    if uniform:
        centres = nothing
    else:

        def add(some: Sequence[Any], sums: Any) -> Any:
            for row, values in rows(some):
                sums = [s + symbol(v, row, part) for part, (s, v) in enumerate(zip(sums, values, strict=True))]
            return sums

        sums = over_tokens(0, tokens, add, nothing)
        centres = [((2 * s + tokens).astype(jnp.uint32) // jnp.uint32(2 * tokens)).astype(jnp.int32) for s in sums]
        for c, centre in zip(channels, centres, strict=True):
            plgpu.store(centres_ref.at[block, c], centre.astype(jnp.uint8), mask=real)

    def spread(some: Sequence[Any], sums: Any) -> Any:
        for row, values in rows(some):
            for part, value in enumerate(values):
                away = jnp.abs(symbol(value, row, part) - centres[part])
                total, most = sums[part]
                sums = [*sums[:part], (total + away, jnp.maximum(most, away)), *sums[part + 1 :]]
        return sums

    bases = []
    for part, (total, most) in enumerate(over_tokens(0, tokens, spread, [(nothing[0], nothing[0])] * fold)):
        ratio = (total.astype(jnp.uint32) * jnp.uint32(1024)) // jnp.uint32(tokens)

        def passed(i: Any, table: Any, ratio: Any = ratio) -> Any:
            return table + (ratio >= thresholds_ref[alphabet, i].astype(jnp.uint32)).astype(jnp.int32)

        table = jax.lax.fori_loop(0, 31, passed, nothing[0])
        if uniform:
            table = jnp.maximum(table, plgpu.load(cover_ref.at[alphabet, jnp.minimum(most, middle)]))
        plgpu.store(tables_ref.at[block, channels[part]], table.astype(jnp.uint8), mask=real)
        bases.append((alphabet * 32 + table) * SYMBOLS)

    def code(some: Sequence[Any], carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        state, position = carry
        steps = []
        for row, values in rows(some):
            for part, value in enumerate(values):
                away = symbol(value, row, part) - centres[part]
                index = bases[part] + away + jnp.where(away < 0, levels, 0)
                entry = plgpu.load(entries_ref.at[index])
                steps.append((entry, plgpu.load(reciprocals_ref.at[index])))
        for entry, reciprocal in reversed(steps):
            frequency = entry & 1023
            full = (state >= entry << (32 - PROBABILITY_BITS)) & real
            rank, total = rank_and_total(full, interpret=interpret)
            position = position - total
            # Lanes that store nothing get places of their own: the interpreter scatters them too.
            place = jnp.where(full, position + rank, room + lane % GROUP_LANES)
            plgpu.store(words_ref.at[block, group, place], state.astype(jnp.uint16), mask=full)
            state = jnp.where(full, state >> 16, state)
            q = quotient(state, frequency, reciprocal, interpret=interpret)
            state = state + q * (jnp.uint32(1 << PROBABILITY_BITS) - frequency) + (entry >> PROBABILITY_BITS)
        return state, position

    first = (jnp.full((LANES,), _START, jnp.uint32), jnp.full((LANES,), room, jnp.int32))
    state, position = over_tokens(0, tokens, code, first, reverse=True)
    plgpu.store(states_ref.at[block, lane], state, mask=real)
    plgpu.store(counts_ref.at[block, group], (room - position).astype(jnp.uint32))


@functools.partial(jax.jit, static_argnames=("uniform", "fold", "interpret"))
def encode(
    blocks: jax.Array,
    row: jax.Array,
    inverse: jax.Array,
    offsets: jax.Array,
    info: jax.Array,
    tables: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
    *,
    uniform: bool,
    fold: int,
    interpret: bool,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """States ``[B, N]``, counts ``[B, G]``, centres and tables ``[B, C]``, and words ``[B, G, room]``.

    Args:
        blocks: ``[B, T, C]``.
        row: float32 ``[B, T]``: lmcache ``middle / maximum``; uniform ``2**-exponent``.
        inverse, offsets: float32 ``[B]`` and ``[B, C]``, uniform.
        info: int32 ``[B, 4]``: levels, alphabet, 0, whether the block is usable; if not, zeros are coded.
        tables: thresholds, covers, entries and reciprocals of the alphabets.
        uniform, fold, interpret: see :mod:`lmcache_kit_kernels.blocks.pallas_pipeline`.

    ``room`` holds a group's run at its end.
    """
    count, tokens, channels = blocks.shape
    lanes = channels // fold
    programs = pl.cdiv(lanes, LANES)
    groups = pl.cdiv(lanes, GROUP_LANES)
    # Programs are whole: the last one counts for groups that are not there.
    padded = programs * CONFIG.warps
    room = GROUP_LANES * words_per_lane(tokens * fold)
    kernel = functools.partial(
        _kernel,
        dtype=blocks.dtype,
        uniform=uniform,
        tokens=tokens,
        lanes=lanes,
        fold=fold,
        room=room,
        interpret=interpret,
    )
    states, counts, centres, chosen, words = pl.pallas_call(
        kernel,
        grid=(count, programs),
        out_shape=(
            shape_of((count, lanes), jnp.uint32),
            shape_of((count, padded), jnp.uint32),
            shape_of((count, channels), jnp.uint8),
            shape_of((count, channels), jnp.uint8),
            shape_of((count, padded if interpret else groups, room + (GROUP_LANES if interpret else 0)), jnp.uint16),
        ),
        compiler_params=plgpu.CompilerParams(num_warps=CONFIG.warps),
        interpret=interpret,
        name="encode",
    )(jax.lax.bitcast_convert_type(blocks, unsigned_of(blocks.dtype)), row, inverse, offsets, info, *tables)
    return states, counts[:, :groups], centres, chosen, words[:, :groups, :room]
