"""Coding on the GPU: blocks that are there become a payload in host memory, and a payload becomes blocks there.

Chunks whose blocks are all entropy coded, as those of real KV are, never leave the device uncompressed. Whatever else
there is (blocks to be kept verbatim, packed or zero, anchors, short chunks) is for the CPU path, which writes and reads
the same bytes: these functions then return None.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from lmcache_kit_kernels import blocks as kernel
from lmcache_kit_kernels.blocks import pallas_pipeline as pipeline
from lmcache_kit_kernels.compaction.pallas_kernel import weigh
from lmcache_kit_kernels.uniform.arguments import ONE

from lmcache_kit_cachegen.container import Directory, Entry, head_size, write_directory
from lmcache_kit_cachegen.device_sections import fixed_parts, parse_fixed
from lmcache_kit_cachegen.header import Header, Mode, padded
from lmcache_kit_cachegen.host_link import HostLink
from lmcache_kit_cachegen.sections import fixed_size
from lmcache_kit_cachegen.writing import choose_modes

__all__ = ["DeviceBuffers", "DeviceCodec"]

Array = np.ndarray[Any, np.dtype[Any]]
_ARRAYS = ("scales", "centres", "tables", "counts", "states")


@dataclass(frozen=True, slots=True, eq=False)
class DeviceBuffers:
    """Coded chunks on the device, with what decoding them takes."""

    coded: pipeline.DeviceCoded
    plan: pipeline.Plan
    tables: pipeline.DeviceTables


@dataclass(frozen=True, slots=True, eq=False)
class _Program:
    """What coding blocks of one header and number of chunks takes; made once, kept on the device."""

    plan: pipeline.Plan
    tables: pipeline.DeviceTables
    firsts: jax.Array
    levels: tuple[int, ...]


@functools.partial(jax.jit, static_argnames=("header", "levels"))
def _fixed(coded: pipeline.DeviceCoded, header: Header, levels: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """The chunks' fixed parts, and all else that the host wants to know as one array uint32 ``[n, 4 * B + 2]``."""
    arrays = {name: getattr(coded, name) for name in _ARRAYS}
    if coded.refinements is not None:
        arrays["refinements"] = coded.refinements
    fixed, checks = fixed_parts(header, levels, arrays)
    chunks, blocks = checks.shape
    words = jnp.sum(coded.counts, axis=1, dtype=jnp.uint32).reshape(chunks, blocks)
    checks = checks + coded.sums.reshape(chunks, blocks)
    good = coded.usable & ~_doubtful(coded, header)
    facts = [
        words,
        checks,
        coded.inverses.astype(jnp.uint32).reshape(chunks, blocks),
        good.astype(jnp.uint32).reshape(chunks, blocks),
        coded.variants.astype(jnp.uint32)[:, None],
    ]
    return fixed, jnp.concatenate(facts, axis=1)


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


@functools.partial(jax.jit, static_argnames=("header", "levels", "chunks"))
def _unpacked(
    payloads: jax.Array,
    facts: jax.Array,
    plan_info: tuple[jax.Array, jax.Array],
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
    sums = jnp.sum(weigh(words, counts, starts, firsts, interpret=_interpret()), axis=1).reshape(chunks, blocks)
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
        info=plan_info[0],
        scale=plan_info[1],
        ratio=np.int32(0),
        log_variances=None,
        share=np.float32(0),
        uniform=header.quantizer == "uniform",
        refined=header.refined_tokens,
        refine_bits=header.refine_bits,
        fold=header.fold,
    )
    values, ends = pipeline.decode(coded, plan, tables, header.layout.np_dtype, starts=starts, interpret=_interpret())
    return values, good & ends


def _interpret() -> bool:
    """Without a GPU the kernels run in Pallas's interpreter, for tests."""
    return jax.default_backend() != "gpu"


class DeviceCodec:
    """Codes on the default device of jax.

    Args:
        link: copies between host and device.
    """

    def __init__(self, link: HostLink) -> None:
        self._link = link
        self._program = functools.lru_cache(maxsize=64)(self._make_program)

    # --- encode ------------------------------------------------------------------------------------------------------

    def encode(self, blocks: jax.Array, header: Header, settings: kernel.Settings) -> DeviceBuffers | None:
        """Chunks ``[n * B, T, C]`` on the device as buffers there; None where the kernels are not made for them."""
        if not pipeline.supported(settings):
            return None
        program = self._program_for(header, settings)
        coded = pipeline.encode(blocks, program.plan, program.tables, program.firsts, even=True, interpret=_interpret())
        return DeviceBuffers(coded, program.plan, program.tables)

    def payloads(self, buffers: DeviceBuffers, header: Header, settings: kernel.Settings) -> list[Array] | None:
        """The payload of each chunk, in page-locked memory; None if a block of theirs must be written otherwise."""
        coded = buffers.coded
        levels = tuple(settings.levels[: header.blocks])
        narrow = replace(header, offset_bytes=int(header.quantizer == "uniform"), exponent_bytes=0)
        fixed, facts = _fixed(coded, narrow, levels)
        known = np.array(facts)
        count = header.blocks
        chunks = len(known)
        words, checks, inverses, good = known[:, : 4 * count].reshape(chunks, 4, count).swapaxes(0, 1)
        if not good.all():
            return None
        results = []
        at = 0
        for chunk, variant in enumerate(known[:, -1]):
            own, row = narrow, fixed[chunk]
            if variant:
                # Wider numbers than most chunks have: their fixed parts are written again, for all.
                own = replace(header, offset_bytes=1 + int(variant) // 2, exponent_bytes=int(variant) % 2)
                wide, wide_facts = _fixed(coded, own, levels)
                row, checks[chunk] = wide[chunk], np.asarray(wide_facts)[chunk, count : 2 * count]
            usable = np.ones(count, bool)
            if any(mode is not Mode.CODED for mode in choose_modes(own, levels, words[chunk], usable, ~usable)):
                return None
            data = [padded(2 * int(number)) for number in words[chunk]]
            entries = [
                Entry(Mode.CODED, level, int(inverse), int(check), fixed_size(own, Mode.CODED, level), size)
                for level, inverse, check, size in zip(levels, inverses[chunk], checks[chunk], data, strict=True)
            ]
            head = np.frombuffer(write_directory(own, entries), np.uint8)
            payload = self._link.to_host(head.size, [(row, 0, row.size), (coded.words, at, sum(data))])
            payload[: head.size] = head
            results.append(payload)
            at += sum(data)
        return results

    # --- decode ------------------------------------------------------------------------------------------------------

    def decode(self, buffers: DeviceBuffers, header: Header) -> jax.Array:
        """Blocks on the device from buffers there."""
        values, _ = pipeline.decode(
            buffers.coded, buffers.plan, buffers.tables, header.layout.np_dtype, even=True, interpret=_interpret()
        )
        return values

    def blocks(self, payloads: Sequence[Array], directories: Sequence[Directory], settings: kernel.Settings) -> Any:
        """Blocks ``[n * B, T, C]`` of payloads whose blocks are all coded; None where the CPU path must read them:
        because they differ in how they were written, or to say what is wrong with them."""
        header = directories[0].header
        if not pipeline.supported(settings) or any(own.header != header for own in directories):
            return None
        levels = tuple(entry.levels for entry in directories[0].entries)
        if any(tuple(entry.levels for entry in own.entries) != levels for own in directories):
            return None
        program = self._program_for(header, settings)
        rows = self._link.to_device(list(payloads), _room(max(payload.size for payload in payloads)))
        facts = np.array(
            [
                [[getattr(entry, name) for entry in own.entries] for name in ("check", "inverse", "data_bytes")]
                for own in directories
            ],
            dtype=np.uint32,
        )
        values, good = _unpacked(
            jax.dlpack.from_dlpack(rows),
            facts,
            (program.plan.info, program.plan.scale),
            program.tables,
            header,
            levels,
            len(payloads),
        )
        return values if bool(good) else None

    # --- what is kept on the device ----------------------------------------------------------------------------------

    def _program_for(self, header: Header, settings: kernel.Settings) -> _Program:
        fields = ("quantizer", "levels", "ratio", "log_variances", "refined_tokens", "refine_bits", "fold", "group")
        key = tuple(getattr(settings, name) for name in fields)
        tables = tuple(settings.tables[levels] for levels in sorted(set(settings.levels)))
        return self._program(replace(header, offset_bytes=0, exponent_bytes=0), key, tables)

    def _make_program(self, header: Header, key: tuple[Any, ...], tables: tuple[Any, ...]) -> _Program:
        quantizer, levels, ratio, logs, refined, bits, fold, group = key
        by_levels: Mapping[int, Any] = {table_set.levels: table_set for table_set in tables}
        settings = kernel.Settings(
            quantizer=quantizer,
            levels=levels,
            ratio=ratio,
            log_variances=logs,
            refined_tokens=refined,
            refine_bits=bits,
            fold=fold,
            group=group,
            tables=by_levels,
        )
        plan, alphabets = pipeline.plan_for(settings, header.num_tokens)
        own = levels[: header.blocks]
        if quantizer == "lmcache":
            variants = [replace(header, offset_bytes=0, exponent_bytes=0)]
        else:
            variants = [replace(header, offset_bytes=wide, exponent_bytes=big) for wide in (1, 2) for big in (0, 1)]
        firsts = [[fixed_size(variant, Mode.CODED, level) // 2 for level in own] for variant in variants]
        arrays = {
            name: None if value is None else jnp.asarray(value)
            for name, value in plan._asdict().items()
            if name in ("info", "scale", "ratio", "log_variances", "share")
        }
        return _Program(
            plan._replace(**arrays),
            pipeline.device_tables(by_levels, alphabets),
            jnp.asarray(np.array(firsts, np.uint32)),
            own,
        )


def _room(size: int) -> int:
    """``size`` rounded up to one of eight numbers between powers of two, so that few programs are compiled."""
    step = max(4096, 1 << max(0, size.bit_length() - 4))
    return -(-size // step) * step
