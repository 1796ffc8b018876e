"""The decoding kernel (Pallas, Triton backend): each warp decodes the run of 32 lanes.

Decoding a symbol, moving it back from its centre and scaling it happen in registers; what is written is the KV itself.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from lmcache_kit_kernels.blocks.config import CONFIG
from lmcache_kit_kernels.blocks.pallas_encode import SYMBOLS, over_tokens
from lmcache_kit_kernels.blocks.pallas_warp import GROUP_LANES, LANES, integers, rank_and_total
from lmcache_kit_kernels.pallas_tools import shape_of
from lmcache_kit_kernels.tables import PROBABILITY_BITS

__all__ = ["decode"]

_LOWER_BOUND = 1 << 16
_SLOTS = 1 << PROBABILITY_BITS


def _kernel(
    states_ref: Any,  # [B, N] uint32
    starts_ref: Any,  # [B, G] int32: where each run begins in words
    counts_ref: Any,  # [B, G] uint32
    words_ref: Any,  # [W] uint16
    centres_ref: Any,  # [B, C] int32 (lmcache) or float32 (uniform)
    tables_ref: Any,  # [B, C] uint8
    row_ref: Any,  # [B, T] float32: lmcache maxima; uniform 2**exponent
    scale_ref: Any,  # [B, 2] float32: lmcache 1 / middle in two parts; uniform step, 0
    info_ref: Any,  # [B, 4] int32: levels, alphabet, 0, 0
    gains_ref: Any,  # [A, 32] float32, uniform
    slots_ref: Any,  # [A * 32 * 1024] uint8: the symbol of each slot
    entries_ref: Any,  # [A * 32 * SYMBOLS] uint32: frequency | start << 10
    refinements_ref: Any,  # [B, R, C] uint8, uniform
    out_ref: Any,
    good_ref: Any,  # [B, G] int32
    *,
    uniform: bool,
    tokens: int,
    lanes: int,
    fold: int,
    refined: int,
    refine_bits: int,
    interpret: bool,
) -> None:
    block = pl.program_id(0)
    lane = pl.program_id(1) * LANES + jnp.arange(LANES, dtype=jnp.int32)
    group = lane // GROUP_LANES
    real = lane < lanes
    channels = [part * lanes + lane for part in range(fold)]
    levels, alphabet = info_ref[block, 0], info_ref[block, 1]
    middle = levels // 2
    scale, scale_rest = scale_ref[block, 0], scale_ref[block, 1]
    slot_bases, entry_bases, origins = [], [], []
    gains: list[Any] = []
    for channel in channels:
        table = plgpu.load(tables_ref.at[block, channel], mask=real, other=0).astype(jnp.int32)
        slot_bases.append((alphabet * 32 + table) * _SLOTS)
        entry_bases.append((alphabet * 32 + table) * SYMBOLS)
        origin = plgpu.load(centres_ref.at[block, channel], mask=real, other=0)
        origins.append(origin if uniform else origin - middle)
        gains.append(plgpu.load(gains_ref.at[alphabet, table]) if uniform else None)
    start = plgpu.load(starts_ref.at[block, group], mask=real, other=0)
    end = start + plgpu.load(counts_ref.at[block, group], mask=real, other=0).astype(jnp.int32)

    def value(symbol: jax.Array, row: Any, part: int, t: Any, fine: bool) -> Any:
        if not uniform:
            away = symbol + origins[part]
            away = integers(away - jnp.where(away > middle, levels, 0))
            # away / middle, correctly rounded: the first product is exact, whether or not it is fused with the sum.
            return (away * scale + away * scale_rest) * row
        away = integers(symbol - jnp.where(symbol > middle, levels, 0))
        if fine:
            found = plgpu.load(refinements_ref.at[block, t, channels[part]], mask=real, other=0)
            # (found + 0.5) / 2**bits - 0.5, the sum in integers: XLA would merge it into the constant of integers().
            part_of_step = integers(2 * found.astype(jnp.int32) + 1) * (0.5 ** (refine_bits + 1)) - 0.5
            return (origins[part] + (away + part_of_step) * row) * scale
        return (origins[part] + away * (gains[part] * row)) * scale

    def steps(some: Any, carry: tuple[jax.Array, jax.Array], *, fine: bool) -> tuple[jax.Array, jax.Array]:
        state, position = carry
        for t in some:
            row = row_ref[block, t]
            for part, channel in enumerate(channels):
                slot = state & (_SLOTS - 1)
                # Two small tables that stay in the nearest cache, rather than one that holds everything and does not.
                symbol = plgpu.load(slots_ref.at[slot_bases[part] + slot.astype(jnp.int32)]).astype(jnp.int32)
                entry = plgpu.load(entries_ref.at[entry_bases[part] + symbol])
                state = (entry & 1023) * (state >> PROBABILITY_BITS) + (slot - (entry >> PROBABILITY_BITS))
                low = (state < _LOWER_BOUND) & real
                rank, total = rank_and_total(low, interpret=interpret)
                place = position + rank
                # A damaged run may ask for words beyond its end; it gets zeros, and its count will differ.
                word = plgpu.load(words_ref.at[place], mask=low & (place < end), other=0).astype(jnp.uint32)
                state = jnp.where(low, state << 16 | word, state)
                position = position + total
                result = value(symbol, row, part, t, fine).astype(out_ref.dtype)
                plgpu.store(out_ref.at[block, t, channel], result, mask=real)
        return state, position

    state = plgpu.load(states_ref.at[block, lane], mask=real, other=_LOWER_BOUND)
    carry = over_tokens(0, refined, functools.partial(steps, fine=True), (state, start))
    state, position = over_tokens(refined, tokens, functools.partial(steps, fine=False), carry)
    wrong = real & ((position != end) | (state != _LOWER_BOUND))
    _, wrongs = rank_and_total(wrong, interpret=interpret)
    plgpu.store(good_ref.at[block, group], (wrongs == 0).astype(jnp.int32))


@functools.partial(jax.jit, static_argnames=("dtype", "uniform", "tokens", "fold", "refine_bits", "interpret"))
def decode(
    states: jax.Array,
    starts: jax.Array,
    counts: jax.Array,
    words: jax.Array,
    centres: jax.Array,
    chosen: jax.Array,
    row: jax.Array,
    scale: jax.Array,
    info: jax.Array,
    tables: tuple[jax.Array, jax.Array, jax.Array],
    refinements: jax.Array,
    *,
    dtype: Any,
    uniform: bool,
    tokens: int,
    fold: int,
    refine_bits: int,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """Blocks ``[B, T, C]``, and int32 ``[B, G]``: 1 where a run ended as it must.

    A run begins at its place of ``starts``, int32 ``[B, G]``; ``words`` may be longer than the runs. ``tables`` are
    gains, slots and entries of all alphabets that ``info`` names.
    """
    count, lanes = states.shape
    programs = pl.cdiv(lanes, LANES)
    kernel = functools.partial(
        _kernel,
        uniform=uniform,
        tokens=tokens,
        lanes=lanes,
        fold=fold,
        refined=refinements.shape[1] if refine_bits else 0,
        refine_bits=refine_bits,
        interpret=interpret,
    )
    blocks, good = pl.pallas_call(
        kernel,
        grid=(count, programs),
        out_shape=(
            shape_of((count, tokens, chosen.shape[1]), dtype),
            shape_of((count, programs * CONFIG.warps), jnp.int32),
        ),
        compiler_params=plgpu.CompilerParams(num_warps=CONFIG.warps),
        interpret=interpret,
        name="decode",
    )(states, starts, counts, words, centres, chosen, row, scale, info, *tables, refinements)
    return blocks, good[:, : counts.shape[1]]
