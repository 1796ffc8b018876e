"""The programs that run on the device around the kernels: from coded blocks to fixed parts of payloads, and back."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from lmcache_kit_kernels.blocks import pallas_pipeline as pipeline
from lmcache_kit_kernels.compaction.pallas_kernel import weigh
from lmcache_kit_kernels.uniform.arguments import ONE

from lmcache_kit_cachegen.container import head_size
from lmcache_kit_cachegen.device_sections import fixed_parts, parse_fixed
from lmcache_kit_cachegen.header import Header, Mode
from lmcache_kit_cachegen.sections import fixed_size

__all__ = ["blocks_of_payloads", "coded_blocks", "decoded_blocks", "encoded_payloads", "interpret"]

Settings = tuple[tuple[str, Any], ...]
"""The fields of a plan that are no arrays."""

_ARRAYS = ("scales", "centres", "tables", "counts", "states")
# Launch even short sequences of kernels as one CUDA graph: launching each would take longer than most of them run.
_GRAPHS = {"xla_gpu_graph_min_graph_size": 1}


def interpret() -> bool:
    """Without a GPU the kernels run in Pallas's interpreter, for tests."""
    return jax.default_backend() != "gpu"


@functools.partial(jax.jit, static_argnames=("settings",), compiler_options=_GRAPHS)
def coded_blocks(
    blocks: jax.Array, arrays: dict[str, jax.Array | None], tables: pipeline.DeviceTables, settings: Settings
) -> pipeline.DeviceCoded:
    """Blocks ``[n * B, T, C]`` coded on the device; the other arguments as in :func:`encoded_payloads`."""
    plan, firsts = _plan(arrays, settings)
    return pipeline.encode(blocks, plan, tables, firsts, even=True, interpret=interpret())


@functools.partial(jax.jit, static_argnames=("dtype", "settings"), compiler_options=_GRAPHS)
def decoded_blocks(
    coded: pipeline.DeviceCoded,
    arrays: dict[str, jax.Array | None],
    tables: pipeline.DeviceTables,
    dtype: Any,
    settings: Settings,
) -> jax.Array:
    """What :func:`coded_blocks` was given, as far as the method keeps it."""
    plan, _ = _plan(arrays, settings)
    values, _ = pipeline.decode(coded, plan, tables, dtype, even=True, interpret=interpret())
    return values


def _plan(arrays: dict[str, jax.Array | None], settings: Settings) -> tuple[pipeline.Plan, Any]:
    fields: dict[str, Any] = {**arrays, **dict(settings)}
    firsts = fields.pop("firsts")
    return pipeline.Plan(**fields), firsts


@functools.partial(jax.jit, static_argnames=("header", "levels", "settings"), compiler_options=_GRAPHS)
def encoded_payloads(
    blocks: jax.Array,
    arrays: dict[str, jax.Array | None],
    tables: pipeline.DeviceTables,
    header: Header,
    levels: tuple[int, ...],
    settings: Settings,
) -> tuple[jax.Array, jax.Array]:
    """All of the payloads of n chunks that follows their directories, and what goes into those.

    Args:
        blocks: ``[n * B, T, C]``.
        arrays: those of the plan, and ``firsts``.
        tables: of the plan's alphabets.
        header: of the payloads, with the widths that their numbers are expected to have.
        levels: of a chunk's blocks.
        settings: the rest of the plan.

    Returns:
        uint16 words: of one chunk after another the fixed parts and the data parts, room behind them; and uint32
        ``[n, 4 * B + 1]``: the blocks' words, checks, inverses and whether they are to be coded here, and the
        chunk's variant, which must be that of ``header``.
    """
    plan, firsts = _plan(arrays, settings)
    lead = sum(fixed_size(header, Mode.CODED, level) for level in levels) // 2
    coded = pipeline.encode(blocks, plan, tables, firsts, even=True, lead=lead, interpret=interpret())
    parts = {name: getattr(coded, name) for name in _ARRAYS}
    if coded.refinements is not None:
        parts["refinements"] = coded.refinements
    fixed, checks = fixed_parts(header, levels, parts)
    chunks, count = checks.shape
    counts = jnp.sum(coded.counts, axis=1, dtype=jnp.uint32).reshape(chunks, count)
    good = coded.usable & ~_doubtful(coded, header)
    facts = [
        counts,
        checks + coded.sums.reshape(chunks, count),
        coded.inverses.astype(jnp.uint32).reshape(chunks, count),
        good.astype(jnp.uint32).reshape(chunks, count),
        coded.variants.astype(jnp.uint32)[:, None],
    ]
    words = coded.words
    used = jnp.sum(counts + (counts & 1), axis=1, dtype=jnp.uint32).astype(jnp.int32)
    begin = jnp.cumsum(used) - used + lead * jnp.arange(chunks, dtype=jnp.int32)
    halves = jax.lax.bitcast_convert_type(fixed.reshape(chunks, -1, 2), jnp.uint16)
    for chunk in range(chunks):
        words = jax.lax.dynamic_update_slice(words, halves[chunk], (begin[chunk],))
    return words, jnp.concatenate(facts, axis=1)


def _doubtful(coded: pipeline.DeviceCoded, header: Header) -> jax.Array:
    """bool ``[B]``: blocks that may be all zeros, or come back infinite in float16: the CPU path looks closer."""
    if header.quantizer == "lmcache":
        return jnp.all(coded.scales == 0, axis=1)
    doubtful = (coded.inverses == ONE) & jnp.all(coded.centres == 0, axis=1)
    if header.layout.dtype == "float16":
        inverse = jax.lax.bitcast_convert_type(coded.inverses.astype(jnp.uint32) << 16, jnp.float32)
        offsets = jnp.max(jnp.abs(coded.centres.astype(jnp.float32)), axis=1)
        reach = offsets + 64 * jnp.exp2(jnp.max(coded.scales, axis=1).astype(jnp.float32))
        doubtful |= reach * 1.01 >= 65504 * inverse
    return doubtful


@functools.partial(jax.jit, static_argnames=("header", "levels", "chunks"), compiler_options=_GRAPHS)
def blocks_of_payloads(
    payloads: jax.Array,
    facts: jax.Array,
    info: jax.Array,
    scale: jax.Array,
    tables: pipeline.DeviceTables,
    header: Header,
    levels: tuple[int, ...],
    chunks: int,
) -> tuple[jax.Array, jax.Array]:
    """Blocks of payloads uint8 ``[n, room]``, and whether all is as it must be.

    ``facts`` is uint32 ``[n, 3, B]``: check, inverse and bytes of the data part of each block.
    """
    blocks = len(levels)
    head = head_size(header.layout)
    total = sum(fixed_size(header, Mode.CODED, level) for level in levels)
    arrays, checks, good = parse_fixed(header, levels, payloads[:, head : head + total])
    room = payloads.shape[1] // 2
    words = jax.lax.bitcast_convert_type(payloads.reshape(-1, 2), jnp.uint16)

    # The run of a group ends where the next begins; counts that do not lead there are forged, and count as nothing.
    counts = arrays["counts"].reshape(chunks, blocks, -1)
    most = header.num_tokens * header.fold * header.group
    data = (facts[:, 2] // 2).astype(jnp.int32)
    used = jnp.sum(jnp.minimum(counts, most).astype(jnp.int32), axis=2)
    right = jnp.all((counts <= most), axis=2) & (used + (used & 1) == data)
    good &= jnp.all(right)
    counts = jnp.where(good, counts, 0)
    begin = jnp.cumsum(data, axis=1) - data + (head + total) // 2 + jnp.arange(chunks, dtype=jnp.int32)[:, None] * room
    own = jnp.cumsum(counts.astype(jnp.int32), axis=2) - counts.astype(jnp.int32)
    starts = (begin[..., None] + own).reshape(chunks * blocks, -1)
    counts = counts.reshape(chunks * blocks, -1)

    sizes = jnp.array([fixed_size(header, Mode.CODED, level) // 2 for level in levels], jnp.uint32)
    firsts = (sizes[None, :, None] + own.astype(jnp.uint32)).reshape(chunks * blocks, -1)
    sums = jnp.sum(weigh(words, counts, starts, firsts, interpret=interpret()), axis=1).reshape(chunks, blocks)
    fill = words.at[jnp.clip(begin + used, 0, words.size - 1)].get(mode="clip")
    good &= jnp.all((used & 1 == 0) | (fill == 0))
    good &= jnp.all(checks + sums == facts[:, 0])

    coded = pipeline.DeviceCoded(
        arrays["scales"],
        facts[:, 1].astype(jnp.uint16).reshape(-1),
        arrays["centres"],
        arrays["tables"],
        arrays.get("refinements"),
        arrays["states"],
        counts,
        words,
        sums,
        good,
        good,
    )
    plan = pipeline.Plan(
        info=info,
        scale=scale,
        ratio=np.int32(0),
        log_variances=None,
        share=np.float32(0),
        uniform=header.quantizer == "uniform",
        refined=header.refined_tokens,
        refine_bits=header.refine_bits,
        fold=header.fold,
    )
    values, ends = pipeline.decode(coded, plan, tables, header.layout.np_dtype, starts=starts, interpret=interpret())
    return values, good & ends
