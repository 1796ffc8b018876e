"""Encoding and decoding of blocks that lie on the device: the kernels, and the small arithmetic between them.

Everything here is traced into one program for each shape, so that nothing waits for the host between two kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmcache_kit_kernels.blocks.config import CONFIG
from lmcache_kit_kernels.blocks.pallas_decode import decode as decode_kernel
from lmcache_kit_kernels.blocks.pallas_encode import SYMBOLS
from lmcache_kit_kernels.blocks.pallas_encode import encode as encode_kernel
from lmcache_kit_kernels.blocks.pallas_rows import channel_sums, residual_maxima, token_maxima
from lmcache_kit_kernels.blocks.records import Settings
from lmcache_kit_kernels.compaction.pallas_kernel import compact, run_starts
from lmcache_kit_kernels.pallas_tools import unsigned_of
from lmcache_kit_kernels.quantize.arguments import TINY
from lmcache_kit_kernels.quantize.float_steps import exact_ratio, power_of_two, product_plus
from lmcache_kit_kernels.rans import GROUP_LANES
from lmcache_kit_kernels.tables import NUM_TABLES, UNIT_GAIN, TableSet, decoding_table
from lmcache_kit_kernels.uniform import xla as uniform
from lmcache_kit_kernels.uniform.arguments import MAX_EXPONENT, ONE

__all__ = ["DeviceCoded", "KernelTables", "Plan", "decode", "encode", "kernel_tables", "plan_for", "supported"]

Array = np.ndarray[Any, np.dtype[Any]]


class DeviceCoded(NamedTuple):
    """:class:`lmcache_kit_kernels.blocks.Coded` on the device, with room behind the words.

    ``words`` holds the runs one after another, with zeros between blocks where they are to be even. ``sums`` uint32
    ``[B]`` is what each block's words add to its check. ``variants`` int32 ``[n]`` says of each chunk how wide its
    numbers are: 2 if an offset needs more than 8 bits, and 1 more if an exponent is not zero. :func:`decode` looks at
    neither, nor at ``inverses`` of quantizer lmcache; whoever keeps the rest may leave them out.
    """

    scales: jax.Array
    inverses: Any
    centres: jax.Array
    tables: jax.Array
    refinements: jax.Array | None
    states: jax.Array
    counts: jax.Array
    words: jax.Array
    sums: Any
    usable: jax.Array
    variants: Any


class KernelTables(NamedTuple):
    """The table sets of some alphabets as the kernels read them: arrays on the host or the device."""

    thresholds: Any
    cover: Any
    entries: Any
    reciprocals: Any
    gains: Any
    slots: Any


class Plan(NamedTuple):
    """What :func:`encode` and :func:`decode` need of :class:`Settings`: arrays, on the host or the device, and what a
    program is made for. A program may hold ``info``, ``scale`` and the tables as constants, but not the other arrays:
    compilers do other arithmetic with numbers that they know."""

    info: Any  # int32 [B, 4]: levels, alphabet, 0, 1
    scale: Any  # float32 [B, 2]: 1 / middle in two parts
    ratio: Any  # int32 []
    log_variances: Any  # int32 [B], or None
    share: Any  # float32 []
    uniform: bool
    refined: int
    refine_bits: int
    fold: int


def supported(settings: Settings) -> bool:
    """Whether the kernels can do this: no anchors, whole warps, and no more channels a lane than registers hold."""
    return not settings.anchor_group and settings.fold <= CONFIG.max_fold and settings.group == GROUP_LANES


def kernel_tables(tables: Mapping[int, TableSet], alphabets: tuple[int, ...]) -> KernelTables:
    """Tables of these alphabets, in this order, on the host."""
    count = len(alphabets)
    thresholds = np.zeros((count, NUM_TABLES), np.int32)
    cover = np.zeros((count, SYMBOLS), np.int32)
    entries = np.ones((count, NUM_TABLES, SYMBOLS), np.uint32)
    gains = np.zeros((count, NUM_TABLES), np.float32)
    slots = np.zeros((count, NUM_TABLES, 1 << 10), np.uint8)
    for place, levels in enumerate(alphabets):
        table_set = tables[levels]
        frequencies = table_set.frequencies.astype(np.uint32)
        thresholds[place, : NUM_TABLES - 1] = table_set.thresholds
        cover[place, : table_set.cover.size] = table_set.cover
        # A symbol that a table leaves out is never coded under it; a frequency of 1 keeps its entry harmless.
        entries[place, :, :levels] = np.maximum(frequencies, 1) | (np.cumsum(frequencies, axis=1) - frequencies) << 10
        gains[place] = table_set.gains / np.float32(UNIT_GAIN)
        slots[place] = decoding_table(table_set) & 127
    reciprocals = np.uint32(0xFFFFFFFF) // (entries & np.uint32(1023))
    return KernelTables(thresholds, cover, entries.reshape(-1), reciprocals.reshape(-1), gains, slots.reshape(-1))


def plan_for(settings: Settings, tokens: int) -> tuple[Plan, tuple[int, ...]]:
    """The plan, and the alphabets in the order that it counts them."""
    alphabets = tuple(sorted(set(settings.levels)))
    info = np.zeros((len(settings.levels), 4), np.int32)
    info[:, 0] = settings.levels
    info[:, 1] = [alphabets.index(levels) for levels in settings.levels]
    info[:, 3] = 1
    scale = np.zeros((len(settings.levels), 2), np.float32)
    for levels in alphabets:
        inverse = 1 / (levels // 2)
        # Twelve bits of it times a symbol are exact in float32; the rest brings the product to a correct rounding.
        head = np.array(inverse, np.float32).view(np.uint32) & np.uint32(0xFFFFF000)
        whole = float(head.view(np.float32))
        scale[info[:, 0] == levels] = whole, inverse - whole
    logs = settings.log_variances
    plan = Plan(
        info=info,
        scale=scale,
        ratio=np.array(settings.ratio, np.int32),
        log_variances=None if logs is None else np.array(logs, np.int32),
        share=np.asarray(uniform.token_share(tokens)),
        uniform=settings.quantizer == "uniform",
        refined=min(settings.refined_tokens, tokens),
        refine_bits=settings.refine_bits,
        fold=settings.fold,
    )
    return plan, alphabets


def _refinements(
    blocks: jax.Array, inverse: jax.Array, offsets: jax.Array, scale: jax.Array, zero: jax.Array, bits: int
) -> jax.Array:
    """uint8 ``[B, R, C]`` of the tokens ``[B, R, C]`` given."""
    moved = product_plus(blocks.astype(jnp.float32), inverse[:, None, None], -offsets[:, None], zero)
    scaled = moved * scale[..., None]
    symbols = jax.lax.round(scaled, jax.lax.RoundingMethod.TO_NEAREST_EVEN)
    return uniform.refinements_traced(scaled, symbols, bits).astype(jnp.uint8)


def _in_domain(maxima: jax.Array) -> jax.Array:
    """Which token maxima LMCache's quantizer takes; a device may count a denormal as zero, hence the bits."""
    bits = jax.lax.bitcast_convert_type(maxima, unsigned_of(maxima.dtype))
    wide = maxima.astype(jnp.float32)
    return (bits == 0) | ((wide >= TINY) & (wide < jnp.inf))


_STATIC = ("uniform_quantizer", "refined", "refine_bits", "fold", "even", "lead", "interpret")


@functools.partial(jax.jit, static_argnames=_STATIC)
def _encode(
    blocks: jax.Array,
    info: jax.Array,
    ratio: jax.Array,
    log_variances: jax.Array | None,
    share: jax.Array,
    firsts: jax.Array,
    tables: KernelTables,
    *,
    uniform_quantizer: bool,
    refined: int,
    refine_bits: int,
    fold: int,
    even: bool,
    lead: int,
    interpret: bool,
) -> DeviceCoded:
    count = len(blocks)
    zero = (ratio >> 30).astype(jnp.uint32)
    refinements = None
    if uniform_quantizer:
        first, second, largest = channel_sums(blocks, interpret=interpret)
        # As integers: a device may count a denormal as zero.
        largest_bits = jnp.max(jax.lax.bitcast_convert_type(largest, jnp.uint32), axis=1)
        inverse_bits, offsets, usable = uniform.scaling_traced(first, second, largest_bits, ratio, log_variances, share)
        inverse = uniform.inverse_traced(inverse_bits)
        far = residual_maxima(blocks, inverse, offsets, zero[None], interpret=interpret)
        exponents = uniform.exponents_traced(far)
        usable &= jnp.all(exponents <= MAX_EXPONENT, axis=1)
        inverse_bits = jnp.where(usable, inverse_bits, ONE)
        inverse = uniform.inverse_traced(inverse_bits)
        offsets = jnp.where(usable[:, None], offsets, 0)
        exponents = jnp.where(usable[:, None], exponents, 0)
        row = power_of_two(-exponents)
        if refined:
            rest = _refinements(blocks[:, :refined], inverse, offsets, row[:, :refined], zero, refine_bits)
            refinements = jnp.where(usable[:, None, None], rest, 1 << refine_bits >> 1).astype(jnp.uint8)
        scales, inverses = exponents.astype(jnp.uint8), inverse_bits.astype(jnp.uint16)
    else:
        scales = token_maxima(blocks, interpret=interpret)
        usable = jnp.all(_in_domain(scales), axis=1)
        middle = jnp.broadcast_to(info[:, :1] // 2, scales.shape)
        row = jnp.where(usable[:, None], exact_ratio(middle, scales.astype(jnp.float32), unroll=True), 0)
        inverses = jnp.zeros((count,), jnp.uint16)
        inverse = offsets = row  # not looked at: any array that is there already
    info = jnp.concatenate([info[:, :3], usable[:, None].astype(jnp.int32)], axis=1)
    states, counts, centres, chosen, scratch = encode_kernel(
        blocks,
        row,
        inverse,
        offsets,
        info,
        (tables.thresholds, tables.cover, tables.entries, tables.reciprocals),
        uniform=uniform_quantizer,
        fold=fold,
        interpret=interpret,
    )
    chunks = count // firsts.shape[1]
    variants = jnp.zeros((chunks,), jnp.int32)
    if uniform_quantizer:
        wide = ((offsets < -128) | (offsets > 127)).reshape(chunks, -1).any(axis=1)
        variants = 2 * wide + (scales != 0).reshape(chunks, -1).any(axis=1)
    starts, own, fills = run_starts(counts, even=even)
    # Each chunk's words come after the room left in front of it and of those before it.
    starts += lead * (1 + np.arange(count, dtype=np.int32) // firsts.shape[1])[:, None]
    firsts = jnp.tile(firsts, (chunks, 1)) if len(firsts) == 1 else firsts[jnp.minimum(variants, len(firsts) - 1)]
    weights = firsts.reshape(-1, 1) + own.astype(jnp.uint32)
    words, sums = compact(scratch, counts, starts, weights, fills, lead * chunks, interpret=interpret)
    kept = offsets.astype(jnp.int16) if uniform_quantizer else centres
    return DeviceCoded(
        scales,
        inverses,
        kept,
        chosen,
        refinements,
        states,
        counts,
        words,
        jnp.sum(sums, axis=1),
        usable,
        variants,
    )


def encode(
    blocks: jax.Array,
    plan: Plan,
    tables: KernelTables,
    firsts: Array | jax.Array | None = None,
    *,
    even: bool = False,
    lead: int = 0,
    interpret: bool = False,
) -> DeviceCoded:
    """Code blocks ``[B, T, C]`` on the device.

    Args:
        blocks: bfloat16, float16 or float32.
        plan: from :func:`plan_for`, and ``tables`` of its alphabets.
        firsts: uint32 ``[V, B / n]``: words before each block's runs in its check, for V variants of the n chunks that
            the blocks are; None: zeros, and one chunk.
        even: fill each block's words up to an even number with a zero.
        lead: words to leave free before the words of each chunk.
        interpret: run the kernels in Pallas's interpreter, on any device.
    """
    coded: DeviceCoded = _encode(
        blocks,
        plan.info,
        plan.ratio,
        plan.log_variances,
        plan.share,
        np.zeros((1, len(plan.info)), np.uint32) if firsts is None else firsts,
        tables,
        uniform_quantizer=plan.uniform,
        refined=plan.refined,
        refine_bits=plan.refine_bits,
        fold=plan.fold,
        even=even,
        lead=lead,
        interpret=interpret,
    )
    return coded


@functools.partial(jax.jit, static_argnames=("dtype", *(name for name in _STATIC if name != "lead")))
def _decode(
    coded: DeviceCoded,
    starts: jax.Array | None,
    info: jax.Array,
    scale: jax.Array,
    tables: KernelTables,
    *,
    dtype: Any,
    uniform_quantizer: bool,
    refined: int,
    refine_bits: int,
    fold: int,
    even: bool,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    tokens = coded.scales.shape[1]
    if uniform_quantizer:
        row = power_of_two(coded.scales.astype(jnp.int32))
        inverse = uniform.inverse_traced(coded.inverses)
        step = exact_ratio(jnp.ones(inverse.shape, jnp.int32), inverse, unroll=True)
        scale = jnp.stack([step, jnp.zeros_like(step)], axis=1)
        centres = coded.centres.astype(jnp.float32)
    else:
        row = coded.scales.astype(jnp.float32)
        centres = coded.centres.astype(jnp.int32)
    refinements = jnp.zeros((1, 1, 1), jnp.uint8) if coded.refinements is None else coded.refinements
    blocks, good = decode_kernel(
        coded.states,
        run_starts(coded.counts, even=even)[0] if starts is None else starts,
        coded.counts,
        coded.words,
        centres,
        coded.tables,
        row,
        scale,
        info,
        (tables.gains, tables.slots, tables.entries),
        refinements,
        dtype=dtype,
        uniform=uniform_quantizer,
        tokens=tokens,
        fold=fold,
        refine_bits=refine_bits if refined else 0,
        interpret=interpret,
    )
    return blocks, jnp.all(good != 0)


def decode(
    coded: DeviceCoded,
    plan: Plan,
    tables: KernelTables,
    dtype: Any,
    *,
    starts: jax.Array | None = None,
    even: bool = False,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Blocks ``[B, T, C]`` of what :func:`encode` returned, and whether every run decoded to its end: values of
    damaged runs mean nothing.

    ``starts`` int32 ``[B, G]`` says where in the words each run begins, if not where :func:`encode` put it; they and
    the counts must lie within the words. ``sums``, ``usable`` and ``variants`` are not looked at.
    """
    blocks, good = _decode(
        coded,
        starts,
        plan.info,
        plan.scale,
        tables,
        dtype=jnp.dtype(dtype),
        uniform_quantizer=plan.uniform,
        refined=plan.refined,
        refine_bits=plan.refine_bits,
        fold=plan.fold,
        even=even,
        interpret=interpret,
    )
    return blocks, good
