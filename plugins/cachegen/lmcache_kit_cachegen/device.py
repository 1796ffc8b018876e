"""Coding on the GPU: blocks that are there become payloads in host memory, and payloads become blocks there.

Chunks whose blocks are all entropy coded, as those of real KV are, never leave the device uncompressed. Whatever else
there is (blocks to be kept verbatim, packed or zero, anchors, short chunks) is for the CPU path, which writes and reads
the same bytes: these functions then return None.

A call takes some hundred microseconds, so what depends on the shape alone is made once and kept: a :class:`Job`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from lmcache_kit_kernels import blocks as kernel
from lmcache_kit_kernels.blocks import pallas_pipeline as pipeline

from lmcache_kit_cachegen.container import HEADER_BYTES, write_directory
from lmcache_kit_cachegen.device_directory import CodedDirectory
from lmcache_kit_cachegen.device_programs import (
    Constants,
    Numbers,
    blocks_of_payloads,
    coded_blocks,
    decoded_blocks,
    encoded_payloads,
)
from lmcache_kit_cachegen.device_sections import FixedLayout
from lmcache_kit_cachegen.header import Header
from lmcache_kit_cachegen.host_link import HostLink

__all__ = ["MAX_ELEMENTS", "DeviceBuffers", "Job", "decode", "encode", "launches", "payloads", "read"]

Array = np.ndarray[Any, np.dtype[Any]]

MAX_ELEMENTS = 1 << 30
"""Most elements of a launch: kernels count words, and places in arrays, in 32 bits with a sign."""
_MAX_BYTES = (1 << 31) - 1  # of the payloads of a launch, for the same reason
_MAX_CHUNKS = 64  # of a launch: a program names each of them


class Job:
    """How chunks of one shape are coded: what programs are compiled for, and directories.

    Args:
        header: of the chunks, but for the widths of their numbers.
        settings: of all their blocks.
    """

    def __init__(self, header: Header, settings: kernel.Settings) -> None:
        self.settings = settings
        elements = len(settings.levels) * header.num_tokens * header.channels
        self.supported = pipeline.supported(settings) and 0 < elements <= MAX_ELEMENTS
        self.levels = tuple(settings.levels[: header.blocks])
        uniform = header.quantizer == "uniform"
        widths = [(wide, big) for wide in (1, 2) for big in (0, 1)] if uniform else [(0, 0)]
        self.headers = tuple(replace(header, offset_bytes=wide, exponent_bytes=big) for wide, big in widths)
        self.expected = 0  # bytes of the next launch's payloads
        self._variants = {write_directory(own, ())[:-4]: variant for variant, own in enumerate(self.headers)}
        self._directories: dict[int, CodedDirectory] = {}

    def directory(self, variant: int) -> CodedDirectory:
        """Of payloads of one variant: see :class:`lmcache_kit_kernels.blocks.pallas_pipeline.DeviceCoded`."""
        if variant not in self._directories:
            self._directories[variant] = CodedDirectory(self.headers[variant], self.levels)
        return self._directories[variant]

    def variant_of(self, payload: Array) -> int | None:
        """Which variant a payload's header names, if it is one of these."""
        return self._variants.get(payload[:HEADER_BYTES].tobytes())

    @cached_property
    def layout(self) -> FixedLayout:
        """Of the payloads' fixed parts."""
        return FixedLayout(self.headers, self.levels)

    @cached_property
    def constants(self) -> Constants:
        """What the job's programs are compiled for."""
        plan, alphabets = pipeline.plan_for(self.settings, self.headers[0].num_tokens)
        return Constants(plan, pipeline.kernel_tables(self.settings.tables, alphabets), self.layout)

    @cached_property
    def numbers(self) -> Numbers:
        """What they are handed besides."""
        plan = self.constants.plan
        logs = None if plan.log_variances is None else jnp.asarray(plan.log_variances)
        return jnp.asarray(plan.ratio), logs, jnp.asarray(plan.share)


@dataclass(frozen=True, slots=True, eq=False)
class DeviceBuffers:
    """Coded chunks on the device."""

    coded: pipeline.DeviceCoded
    job: Job


def encode(blocks: jax.Array, job: Job) -> DeviceBuffers:
    """Chunks ``[n * B, T, C]`` on the device as buffers there, for a job that is supported. Does not wait."""
    return DeviceBuffers(coded_blocks(blocks, job.numbers, job.constants), job)


def decode(buffers: DeviceBuffers) -> jax.Array:
    """Blocks on the device from buffers there. Does not wait."""
    values: jax.Array = decoded_blocks(buffers.coded, buffers.job.constants)
    return values


def payloads(blocks: jax.Array, job: Job, link: HostLink) -> list[Array] | None:
    """The payload of each chunk ``[n * B, T, C]`` on the device, for a job that is supported; they share page-locked
    memory.

    None if a block must be written otherwise than coded.
    """
    words, facts = encoded_payloads(blocks, job.numbers, job.constants)
    # A copy of as many bytes as the last launch made begins when they are there, before it is known how many they are.
    fetched = link.to_host(words, job.expected)
    known = np.asarray(facts)
    count = len(job.levels)
    counts, checks, inverses, good = known[:, : 4 * count].reshape(len(known), 4, count).swapaxes(0, 1)
    if not good.all():
        return None
    data = (2 * counts.astype(np.int64) + 3) // 4 * 4
    parts = []
    end = 0
    for chunk, variant in enumerate(known[:, -1].tolist()):
        directory = job.directory(variant)
        if not directory.fits(data[chunk]):
            return None
        head = directory.write(inverses[chunk], checks[chunk], data[chunk])
        begin = end + 4 * job.layout.words - directory.fixed_bytes
        end += directory.head_bytes + 4 * job.layout.words + int(data[chunk].sum())
        parts.append((head, begin, end))
    job.expected = _room(end)
    host = fetched.wait(end)
    for head, begin, _ in parts:
        host[begin : begin + head.size] = head
    return [host[begin:end] for _, begin, end in parts]


def read(given: Sequence[Array], job: Job, link: HostLink) -> Any:
    """Blocks ``[n * B, T, C]`` of payloads, as a PyTorch tensor.

    None where the CPU path must read them: because they are not all of this job, or to say what is wrong with them.
    """
    room = _room(max(payload.size for payload in given))
    if len(given) * room > _MAX_BYTES:
        return None
    with link.to_device(given, room) as rows:  # while they are on their way
        for payload in given:
            variant = job.variant_of(payload)
            if variant is None or not job.directory(variant).describes(payload):
                return None
        values, good = blocks_of_payloads(rows.wait(), job.constants)
        tensor = link.from_device(values)  # while the device works
        return tensor if bool(np.asarray(good)) else None


def launches(chunks: int, size: int, elements: int = MAX_ELEMENTS) -> Iterator[slice]:
    """Which of ``chunks`` of ``size`` elements each go into one launch, of about so many ``elements``.

    Their number is a power of two, at most 64: each number of chunks is a program of its own, which takes seconds to
    compile.
    """
    most = min(_MAX_CHUNKS, max(1, elements // max(1, size)))
    start = 0
    while start < chunks:
        length = 1 << (min(most, chunks - start).bit_length() - 1)
        yield slice(start, start + length)
        start += length


def _room(size: int) -> int:
    """``size`` rounded up to one of eight numbers between powers of two, so that few programs are compiled."""
    step = max(4096, 1 << max(0, size.bit_length() - 4))
    return -(-size // step) * step
