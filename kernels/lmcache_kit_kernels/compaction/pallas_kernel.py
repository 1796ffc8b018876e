"""Compaction on the GPU (Pallas, Triton backend): one program copies one run and sums it up on the way."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from lmcache_kit_kernels.pallas_tools import shape_of

__all__ = ["compact", "run_starts", "weigh"]

_STRIP = 256


def run_starts(counts: jax.Array, *, even: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where runs of ``counts`` ``[B, G]`` words begin, in all and within their block, and the zeros that follow each.

    With ``even`` each block's words are filled up to an even number. All int32 ``[B, G]``.
    """
    whole = counts.astype(jnp.int32)
    ends = jnp.cumsum(whole, axis=1)
    totals = ends[:, -1]
    filled = totals + (totals & 1) if even else totals
    blocks = jnp.cumsum(filled) - filled
    own = ends - whole
    last = jnp.arange(counts.shape[1]) == counts.shape[1] - 1
    return blocks[:, None] + own, own, jnp.where(last, (filled - totals)[:, None], 0)


def _kernel(
    scratch_ref: Any,
    counts_ref: Any,
    starts_ref: Any,
    firsts_ref: Any,
    fills_ref: Any,
    words_ref: Any,
    sums_ref: Any,
    *,
    room: int,
    spare: int,
) -> None:
    block, group = pl.program_id(0), pl.program_id(1)
    count = counts_ref[block, group].astype(jnp.int32)
    start, first, fill = starts_ref[block, group], firsts_ref[block, group], fills_ref[block, group]
    offsets = jnp.arange(_STRIP, dtype=jnp.int32)

    def strip(number: Any, total: Any) -> Any:
        index = number * _STRIP + offsets
        word = plgpu.load(scratch_ref.at[block, group, room - count + index], mask=index < count, other=0)
        inside = index < count + fill
        # Lanes past the end store nothing; the interpreter scatters them too, so they get places of their own.
        plgpu.store(words_ref.at[jnp.where(inside, start + index, spare + offsets)], word, mask=inside)
        weight = 2 * (first + index.astype(jnp.uint32)) + 1
        return total + word.astype(jnp.uint32) * weight

    total = jax.lax.fori_loop(0, pl.cdiv(count + fill, _STRIP), strip, jnp.zeros((_STRIP,), jnp.uint32))
    sums_ref[block, group] = jnp.sum(total.astype(jnp.int32)).astype(jnp.uint32)


@functools.partial(jax.jit, static_argnames=("more", "interpret"))
def compact(
    scratch: jax.Array,
    counts: jax.Array,
    starts: jax.Array,
    firsts: jax.Array,
    fills: jax.Array,
    more: int = 0,
    *,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """Runs one after another, uint16 ``[B * (G * room + 1) + more]`` of which the first are set; their sums ``[B, G]``.

    Args:
        scratch: uint16 ``[B, G, room]`` with each run of ``counts`` ``[B, G]`` words at the end of its room.
        starts: int32 ``[B, G]``, where each run goes.
        firsts: uint32 ``[B, G]``, what the sums count each run's first word as.
        fills: int32 ``[B, G]``, zeros to write behind each run.
        more: words that the runs leave free between them.
        interpret: run in Pallas's interpreter.
    """
    blocks, groups, room = scratch.shape
    spare = blocks * (groups * room + 1) + more
    words, sums = pl.pallas_call(
        functools.partial(_kernel, room=room, spare=spare),
        grid=(blocks, groups),
        out_shape=(
            shape_of((spare + (_STRIP if interpret else 0),), jnp.uint16),
            shape_of((blocks, groups), jnp.uint32),
        ),
        compiler_params=plgpu.CompilerParams(num_warps=1),
        interpret=interpret,
        name="compact",
    )(scratch, counts, starts, firsts, fills)
    return words[:spare] if interpret else words, sums


def _weigh_kernel(words_ref: Any, counts_ref: Any, starts_ref: Any, firsts_ref: Any, sums_ref: Any) -> None:
    block, group = pl.program_id(0), pl.program_id(1)
    count = counts_ref[block, group].astype(jnp.int32)
    start, first = starts_ref[block, group], firsts_ref[block, group]
    offsets = jnp.arange(_STRIP, dtype=jnp.int32)

    def strip(number: Any, total: Any) -> Any:
        index = number * _STRIP + offsets
        word = plgpu.load(words_ref.at[start + index], mask=index < count, other=0)
        return total + word.astype(jnp.uint32) * (2 * (first + index.astype(jnp.uint32)) + 1)

    total = jax.lax.fori_loop(0, pl.cdiv(count, _STRIP), strip, jnp.zeros((_STRIP,), jnp.uint32))
    sums_ref[block, group] = jnp.sum(total.astype(jnp.int32)).astype(jnp.uint32)


@functools.partial(jax.jit, static_argnames="interpret")
def weigh(words: jax.Array, counts: jax.Array, starts: jax.Array, firsts: jax.Array, *, interpret: bool) -> jax.Array:
    """The sums uint32 ``[B, G]`` that :func:`compact` returns, of runs that lie in ``words`` uint16 ``[W]`` already.

    Every run must lie within the words.
    """
    sums: jax.Array = pl.pallas_call(
        _weigh_kernel,
        grid=counts.shape,
        out_shape=shape_of(counts.shape, jnp.uint32),
        compiler_params=plgpu.CompilerParams(num_warps=1),
        interpret=interpret,
        name="weigh",
    )(words, counts, starts, firsts)
    return sums
