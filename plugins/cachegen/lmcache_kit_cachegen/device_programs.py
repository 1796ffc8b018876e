"""The programs that run on the device around the kernels: from coded blocks to fixed parts of payloads, and back."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from lmcache_kit_kernels.blocks import pallas_pipeline as pipeline
from lmcache_kit_kernels.compaction.pallas_kernel import weigh
from lmcache_kit_kernels.uniform.arguments import ONE

from lmcache_kit_cachegen.container import HEADER_BYTES, WIDTHS_AT, head_size
from lmcache_kit_cachegen.device_sections import FixedLayout, fixed_words, parse_fixed
from lmcache_kit_cachegen.header import Header

__all__ = ["Constants", "Numbers", "blocks_of_payloads", "coded_blocks", "decoded_blocks", "encoded_payloads"]

Array = np.ndarray[Any, np.dtype[Any]]

_ARRAYS = ("scales", "centres", "tables", "counts", "states")
_OPTIONS: dict[str, Any] = {}
_PIECES = 16


@dataclass(frozen=True, slots=True, eq=False)
class Constants:
    """What programs are compiled for: every array that is handed over instead takes time in every call.

    Attributes:
        plan: with arrays on the host, of which programs hold ``info`` and ``scale``.
        tables: of the plan's alphabets.
        layout: of the payloads' fixed parts.
    """

    plan: pipeline.Plan
    tables: pipeline.KernelTables
    layout: FixedLayout

    @property
    def firsts(self) -> Array:
        """uint16 words of each block's fixed part, uint32 ``[V, B]``."""
        return (2 * self.layout.sizes).astype(np.uint32)

    def with_numbers(self, numbers: Numbers) -> pipeline.Plan:
        """The plan with what must not be constant."""
        return self.plan._replace(ratio=numbers[0], log_variances=numbers[1], share=numbers[2])


Numbers = tuple[jax.Array, jax.Array | None, jax.Array]
"""Ratio, log variances and share of a plan, on the device."""


def interpret() -> bool:
    """Without a GPU the kernels run in Pallas's interpreter, for tests."""
    return jax.default_backend() != "gpu"


@functools.partial(jax.jit, static_argnames="constants")
def coded_blocks(blocks: jax.Array, numbers: Numbers, constants: Constants) -> pipeline.DeviceCoded:
    """Blocks ``[n * B, T, C]`` coded on the device, without what only payloads need."""
    plan = constants.with_numbers(numbers)
    coded = pipeline.encode(blocks, plan, constants.tables, even=True, interpret=interpret())
    inverses = coded.inverses if plan.uniform else None
    return coded._replace(inverses=inverses, sums=None, variants=None)


@functools.partial(jax.jit, static_argnames="constants")
def decoded_blocks(coded: pipeline.DeviceCoded, constants: Constants) -> jax.Array:
    """What :func:`coded_blocks` was given, as far as the method keeps it."""
    dtype = constants.layout.header.layout.np_dtype
    values, _ = pipeline.decode(coded, constants.plan, constants.tables, dtype, even=True, interpret=interpret())
    return values


def encoded_payloads(blocks: jax.Array, numbers: Numbers, constants: Constants) -> tuple[jax.Array, jax.Array]:
    """All of the payloads of n chunks that follows their directories, and what goes into those.

    Args:
        blocks: ``[n * B, T, C]``.
        numbers: of the plan.
        constants: what the program is for.

    Returns:
        uint16 words: of one chunk after another room for the directory, the fixed parts, at the end of the room that
        the largest variant needs, and the data parts; there is room behind them all. And uint32 ``[n, 4 * B + 1]``
        in page-locked host memory: the blocks' words, checks, inverses and whether they are to be coded here, and the
        chunk's variant.
    """
    found: tuple[jax.Array, jax.Array] = _programs()[0](blocks, numbers, constants)
    return found


def _encoded_payloads(blocks: jax.Array, numbers: Numbers, constants: Constants) -> tuple[jax.Array, jax.Array]:
    plan, layout = constants.with_numbers(numbers), constants.layout
    lead = head_size(layout.header.layout) // 2 + 2 * layout.words
    coded = pipeline.encode(
        blocks, plan, constants.tables, constants.firsts, even=True, lead=lead, interpret=interpret()
    )
    parts = {name: getattr(coded, name) for name in _ARRAYS}
    if coded.refinements is not None:
        parts["refinements"] = coded.refinements
    chunks, count = len(coded.variants), len(layout.levels)
    counts = jnp.sum(coded.counts, axis=1, dtype=jnp.uint32).reshape(chunks, count)
    used = jnp.sum(counts + (counts & 1), axis=1, dtype=jnp.uint32).astype(jnp.int32)
    begin = jnp.cumsum(used) - used + lead * jnp.arange(chunks, dtype=jnp.int32)
    fixed = fixed_words(layout, parts, coded.variants)
    halves = jax.lax.bitcast_convert_type(fixed, jnp.uint16).reshape(chunks, -1)
    words = coded.words
    for chunk in range(chunks):
        words = jax.lax.dynamic_update_slice(words, halves[chunk], (begin[chunk] + lead - 2 * layout.words,))
    pieces = _pieces(layout, coded.variants, begin + lead)
    checks = jnp.sum(weigh(words, *pieces, interpret=interpret()), axis=1) + coded.sums
    good = coded.usable & ~_doubtful(coded, layout.header)
    facts = [
        counts,
        checks.reshape(chunks, count),
        coded.inverses.astype(jnp.uint32).reshape(chunks, count),
        good.astype(jnp.uint32).reshape(chunks, count),
        coded.variants.astype(jnp.uint32)[:, None],
    ]
    return words, jnp.concatenate(facts, axis=1)


def _pieces(layout: FixedLayout, variants: jax.Array, ends: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The fixed part of each block in pieces, so that several programs weigh it: their counts, starts and first numbers
    ``[n * B, _PIECES]``; ``ends`` is the uint16 word where each chunk's fixed parts end."""
    sizes = 2 * layout.sizes
    starts = np.cumsum(sizes, axis=1) - sizes - sizes.sum(axis=1, keepdims=True)
    length = -(-sizes // _PIECES)[..., None]
    firsts = np.minimum(length * np.arange(_PIECES), sizes[..., None])
    counts = np.minimum(length, sizes[..., None] - firsts)
    own = [
        jnp.asarray(array.astype(np.int32))[variants].reshape(-1, _PIECES)
        for array in (counts, starts[..., None] + firsts, firsts)
    ]
    begin = jnp.repeat(ends, len(layout.levels), total_repeat_length=len(own[0]))[:, None]
    return own[0].astype(jnp.uint32), own[1] + begin, own[2].astype(jnp.uint32)


def _doubtful(coded: pipeline.DeviceCoded, header: Header) -> jax.Array:
    """bool ``[B]``: blocks that may be all zeros, or come back infinite in float16: the CPU path looks closer."""
    if header.quantizer == "lmcache":
        return jnp.all(coded.scales == 0, axis=1)
    doubtful: jax.Array = (coded.inverses == ONE) & jnp.all(coded.centres == 0, axis=1)
    if header.layout.dtype == "float16":
        inverse = jax.lax.bitcast_convert_type(coded.inverses.astype(jnp.uint32) << 16, jnp.float32)
        offsets = jnp.max(jnp.abs(coded.centres.astype(jnp.float32)), axis=1)
        reach = offsets + 64 * jnp.exp2(jnp.max(coded.scales, axis=1).astype(jnp.float32))
        doubtful |= reach * 1.01 >= 65504 * inverse
    return doubtful


def blocks_of_payloads(payloads: jax.Array, constants: Constants) -> tuple[jax.Array, jax.Array]:
    """Blocks of payloads uint8 ``[n, room]``, and whether all is as it must be, in page-locked host memory.

    Their directories must have been looked at.
    """
    found: tuple[jax.Array, jax.Array] = _programs()[1](payloads, constants)
    return found


def _blocks_of_payloads(payloads: jax.Array, constants: Constants) -> tuple[jax.Array, jax.Array]:
    layout, plan = constants.layout, constants.plan
    header, chunks, blocks = layout.header, len(payloads), len(layout.levels)
    room = payloads.shape[1] // 2
    whole = jax.lax.bitcast_convert_type(payloads.reshape(chunks, -1, 4), jnp.uint32)
    words = jax.lax.bitcast_convert_type(payloads.reshape(-1, 2), jnp.uint16)
    head = head_size(header.layout)
    variants, inverses, wanted, data = _directories(whole, blocks)
    arrays, good = parse_fixed(layout, whole[:, head // 4 : head // 4 + layout.words], variants)

    # The run of a group ends where the next begins; counts that do not lead there are forged, and count as nothing.
    counts = arrays["counts"].reshape(chunks, blocks, -1)
    most = header.num_tokens * header.fold * header.group
    used = jnp.sum(jnp.minimum(counts, most).astype(jnp.int32), axis=2)
    right = jnp.all((counts <= most), axis=2) & (used + (used & 1) == data)
    good &= jnp.all(right)
    counts = jnp.where(good, counts, 0)
    sizes = jnp.asarray((2 * layout.sizes).astype(np.int32))[variants]
    ends = head // 2 + jnp.sum(sizes, axis=1) + jnp.arange(chunks, dtype=jnp.int32) * room
    begin = jnp.cumsum(data, axis=1) - data + ends[:, None]
    own = jnp.cumsum(counts.astype(jnp.int32), axis=2) - counts.astype(jnp.int32)
    starts = (begin[..., None] + own).reshape(chunks * blocks, -1)
    counts = counts.reshape(chunks * blocks, -1)
    firsts = (sizes[..., None] + own).astype(jnp.uint32).reshape(chunks * blocks, -1)
    runs = (counts, starts, firsts)
    both = [jnp.concatenate(pair, axis=1) for pair in zip(runs, _pieces(layout, variants, ends), strict=True)]
    sums = jnp.sum(weigh(words, *both, interpret=interpret()), axis=1).reshape(chunks, blocks)
    fill = words.at[jnp.clip(begin + used, 0, words.size - 1)].get(mode="clip")
    good &= jnp.all((used & 1 == 0) | (fill == 0))
    good &= jnp.all(sums == wanted)

    coded = pipeline.DeviceCoded(
        arrays["scales"],
        inverses.astype(jnp.uint16).reshape(-1),
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
    values, ended = pipeline.decode(
        coded, plan, constants.tables, header.layout.np_dtype, starts=starts, interpret=interpret()
    )
    return values, good & ended


def _directories(words: jax.Array, blocks: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Of payloads in uint32 words ``[n, N]``: the variant int32 ``[n]``, and of each block ``[n, B]`` the inverse, the
    check, and the uint16 words of its data part, int32."""
    widths = words[:, WIDTHS_AT // 4]
    offset_bytes, exponent_bytes = (widths >> 16) & 255, widths >> 24
    variants = jnp.where(offset_bytes == 2, 2, 0) + jnp.where(exponent_bytes == 1, 1, 0)
    entries = words[:, HEADER_BYTES // 4 : HEADER_BYTES // 4 + 4 * blocks].reshape(len(words), blocks, 4)
    return variants, entries[..., 0] >> 16, entries[..., 1], (entries[..., 3] // 2).astype(jnp.int32)


@functools.cache
def _programs() -> tuple[Any, Any]:
    """The two programs compiled. Their second results are small and go to host memory with the program: fetching them
    afterwards would take longer than coding a chunk."""
    device, kind = jax.local_devices()[0], "pinned_host"
    if kind not in {memory.kind for memory in device.addressable_memories()}:
        kind = device.default_memory().kind
    how: dict[str, Any] = {
        "compiler_options": _OPTIONS,
        "out_shardings": (None, jax.sharding.SingleDeviceSharding(device, memory_kind=kind)),
    }
    return (
        jax.jit(_encoded_payloads, static_argnames="constants", **how),
        jax.jit(_blocks_of_payloads, static_argnames="constants", **how),
    )
