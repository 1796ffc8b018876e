"""The compression method."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from lmcache_kit_kernels import blocks as kernel
from lmcache_kit_kernels.tables import builtin_tables_by_levels

from lmcache_kit.contracts.compression import CompressionMethod
from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.errors import BlobError, InvalidRequestError
from lmcache_kit.kv.layout import KVLayout, KVTensor
from lmcache_kit_cachegen import compute
from lmcache_kit_cachegen.container import Directory, Entry, head_size, read_directory, write_directory
from lmcache_kit_cachegen.fitting import fit_profile
from lmcache_kit_cachegen.header import BUILT_IN, Header, Mode
from lmcache_kit_cachegen.levels import LANE_STEPS, LEVELS, UNIFORM_SYMBOLS, lmcache_levels
from lmcache_kit_cachegen.options import ANCHOR_GROUP, DEFAULT_SINK_TOKENS, CacheGenOptions
from lmcache_kit_cachegen.profile import load_profile
from lmcache_kit_cachegen.reading import Block, decode_blocks
from lmcache_kit_cachegen.writing import write_payloads

__all__ = ["MAX_CHANNELS", "MAX_TOKENS", "CacheGen", "fold_of"]

Array = np.ndarray[Any, np.dtype[Any]]

MAX_TOKENS = 32768
"""Most tokens of a chunk: sums over more would not be exact on every backend."""
MAX_CHANNELS = 128 * 576
"""Most channels of a (layer, plane), heads x head dimension, for the same reason."""
_GROUP = 32


def fold_of(num_tokens: int, channels: int, lane_steps: int = LANE_STEPS) -> int:
    """Coder steps per token: the smallest power of two that divides the channels and gives a lane these steps, or the
    largest that divides them. Short chunks so have fewer lanes, whose fixed cost would outweigh their symbols."""
    fold = 1
    while fold * num_tokens < lane_steps and channels % (2 * fold) == 0:
        fold *= 2
    return fold


class CacheGen(CompressionMethod):
    """CacheGen's scheme with our quantizer or LMCache's.

    Every (layer, plane) is a block of its own. A block is entropy coded, or packed in a fixed number of bits a symbol
    where that is smaller; both decode to ``dequantize(quantize(block))`` exactly. What the quantizer cannot represent
    is kept bit for bit, and so is a block that anything else would make larger.
    """

    version = 1

    def __init__(self, options: CacheGenOptions) -> None:
        self.options = options
        self._compute = compute.choose(options)
        self.device = self._compute.device
        self._profile = None if options.profile is None else load_profile(options.profile)
        # What can be read: payloads written without a profile, always, and those of the profile.
        self._tables = {BUILT_IN: builtin_tables_by_levels()}
        self._fingerprint = BUILT_IN
        if self._profile is not None:
            self._fingerprint = self._profile.fingerprint
            self._tables[self._fingerprint] = self._profile.tables

    @property
    def backend(self) -> str:
        """The backend of the kernels that was chosen."""
        return self._compute.backend

    # --- encode ------------------------------------------------------------------------------------------------------

    def encode(self, kv: KVTensor) -> Buffer:
        """Raises InvalidRequestError for a chunk of more than 32,768 tokens or a layer of more than 73,728 channels."""
        (payload,) = self._encode([kv])
        return payload

    def encode_many(self, kvs: Sequence[KVTensor]) -> list[Buffer]:
        """The payload of each tensor; those of one layout and length go through the kernels together."""
        alike: dict[tuple[KVLayout, int], list[int]] = defaultdict(list)
        for place, kv in enumerate(kvs):
            alike[kv.layout, kv.num_tokens].append(place)
        payloads: dict[int, Buffer] = {}
        for places in alike.values():
            at_once = max(1, self._compute.elements // max(1, kvs[places[0]].data.size))
            for start in range(0, len(places), at_once):
                some = places[start : start + at_once]
                payloads.update(zip(some, self._encode([kvs[place] for place in some]), strict=True))
        return [payloads[place] for place in range(len(kvs))]

    def _encode(self, kvs: Sequence[KVTensor]) -> Sequence[Buffer]:
        """Payloads of tensors of one layout and length."""
        return self.encode_on_host(kvs)

    def encode_on_host(self, kvs: Sequence[KVTensor]) -> list[bytes]:
        """Payloads of tensors of one layout and length, by the kernels for KV in host memory."""
        header, settings = self.header_and_settings(kvs[0].layout, kvs[0].num_tokens, len(kvs))
        if header.num_tokens == 0:
            entries = [Entry(Mode.VERBATIM, 0, 0, 0, 0, 0)] * header.blocks
            return [write_directory(header, entries)] * len(kvs)
        shape = (header.blocks, header.num_tokens, header.channels)
        data = [kv.data.reshape(shape) for kv in kvs]
        blocks = data[0] if len(data) == 1 else np.concatenate(data)
        with self._compute.applied():
            return write_payloads(blocks, header, settings, self.backend)

    def header_and_settings(self, layout: KVLayout, num_tokens: int, chunks: int) -> tuple[Header, kernel.Settings]:
        """How chunks of this shape are written, before it is known how wide their numbers are, and how they are coded.

        Raises InvalidRequestError for shapes that cannot be."""
        header = self._header(layout, num_tokens)
        return header, self._settings(header, chunks)

    def _header(self, layout: KVLayout, num_tokens: int) -> Header:
        channels = layout.num_kv_heads * layout.head_dim
        if num_tokens > MAX_TOKENS:
            raise InvalidRequestError(
                f"cachegen codes at most {MAX_TOKENS} tokens in a chunk, got {num_tokens}",
                hint="use a smaller chunk size",
            )
        if channels > MAX_CHANNELS:
            raise InvalidRequestError(
                f"cachegen codes at most {MAX_CHANNELS} channels (heads x head dimension) in a layer, got {channels}"
            )
        if self._profile is not None:
            self._profile.check_layout(layout)
        refined, bits = self._refinement(num_tokens)
        lane_steps = LANE_STEPS
        if self.options.quantizer == "uniform":
            lane_steps = LEVELS[self.options.effective_level].lane_steps
        uniform = self.options.quantizer == "uniform"
        return Header(
            layout=layout,
            num_tokens=num_tokens,
            quantizer=self.options.quantizer,
            group=_GROUP,
            fold=fold_of(num_tokens, channels, lane_steps),
            refined_tokens=refined,
            refine_bits=bits,
            anchor_group=ANCHOR_GROUP if self.options.anchor_delta else 0,
            offset_bytes=int(uniform),
            exponent_bytes=0,
            fingerprint=self._fingerprint,
        )

    def _refinement(self, num_tokens: int) -> tuple[int, int]:
        """How many tokens are refined, and by how many bits."""
        if self.options.quantizer == "lmcache":
            return 0, 0
        level = LEVELS[self.options.effective_level]
        sinks = DEFAULT_SINK_TOKENS if self.options.sink_tokens is None else self.options.sink_tokens
        refined = num_tokens if level.refine_all else min(num_tokens, sinks)
        return (refined, level.refine_bits) if refined else (0, 0)

    def _settings(self, header: Header, chunks: int) -> kernel.Settings:
        layout = header.layout
        if header.quantizer == "lmcache":
            levels, ratio = lmcache_levels(layout.num_layers, layout.planes), 0
        else:
            levels, ratio = (UNIFORM_SYMBOLS,) * header.blocks, LEVELS[self.options.effective_level].ratio
        steps = None if self._profile is None else self._profile.log_variances
        return kernel.Settings(
            quantizer=header.quantizer,
            levels=levels * chunks,
            ratio=ratio,
            log_variances=None if steps is None else steps * chunks,
            refined_tokens=header.refined_tokens,
            refine_bits=header.refine_bits,
            anchor_group=header.anchor_group,
            fold=header.fold,
            group=header.group,
            tables=self._tables[header.fingerprint],
        )

    def fit(self, samples: Iterable[KVTensor]) -> bytes:
        """The contents of a profile file: see :func:`lmcache_kit_cachegen.fitting.fit_profile`."""
        return fit_profile(samples, self.options).to_json()

    # --- decode ------------------------------------------------------------------------------------------------------

    def decode(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> KVTensor:
        """Raises BlobError for a payload that :meth:`encode` did not write or that was damaged since."""
        (kv,) = self.decode_many([payload], layout, [num_tokens], version)
        return kv

    def decode_many(
        self, payloads: Sequence[memoryview], layout: KVLayout, num_tokens: Sequence[int], version: int
    ) -> list[KVTensor]:
        """KV of each payload; blocks that were coded alike go through the kernels together. Raises BlobError."""
        return self.decode_on_host(payloads, layout, num_tokens, version)

    def decode_on_host(
        self, payloads: Sequence[memoryview], layout: KVLayout, num_tokens: Sequence[int], version: int
    ) -> list[KVTensor]:
        """What :meth:`decode_many` does, by the kernels for KV in host memory."""
        opened = [
            self.open(payload, layout, tokens, version) for payload, tokens in zip(payloads, num_tokens, strict=True)
        ]
        kvs = [KVTensor.empty(layout, tokens) for tokens in num_tokens]
        blocks: list[Block] = []
        for (data, directory), kv in zip(opened, kvs, strict=True):
            blocks += blocks_of(directory, data, range(directory.header.blocks), kv.data)
        self.decode_blocks(blocks)
        return kvs

    def decode_layers(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> Iterator[KVTensor]:
        """One tensor ``[1, P, T, H, D]`` per layer; a layer's bytes are looked at only when it is asked for."""
        data, directory = self.open(payload, layout, num_tokens, version)
        one = replace(layout, num_layers=1)
        for layer in range(layout.num_layers):
            kv = KVTensor.empty(one, num_tokens)
            wanted = range(layer * layout.planes, (layer + 1) * layout.planes)
            self.decode_blocks(list(blocks_of(directory, data, wanted, kv.data)))
            yield kv

    def read_directory(self, head: memoryview, layout: KVLayout, num_tokens: int, version: int) -> Directory:
        """Header and directory at the beginning of a payload, which this method can decode. Raises BlobError."""
        if version != self.version:
            raise BlobError(f"cachegen payload version {version} is not readable, this build reads {self.version}")
        directory = read_directory(head, layout, num_tokens)
        if num_tokens > MAX_TOKENS or directory.header.channels > MAX_CHANNELS:
            raise BlobError(f"cachegen codes no {num_tokens} tokens of {directory.header.channels} channels")
        self._check_fingerprint(directory.header)
        return directory

    def _check_fingerprint(self, header: Header) -> None:
        if header.fingerprint not in self._tables:
            has = "none" if self._profile is None else f"profile {self._fingerprint.hex()}"
            raise BlobError(
                f"cachegen payload was written with profile {header.fingerprint.hex()}, this method has {has}",
                hint="give option profile the path of the file with that fingerprint",
            )

    def open(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> tuple[Array, Directory]:
        """A whole payload as bytes, aligned to 4, and its directory. Raises BlobError."""
        view = memoryview(payload).cast("B")
        directory = self.read_directory(view[: head_size(layout)], layout, num_tokens, version)
        if directory.size != len(view):
            raise BlobError(f"cachegen payload has {len(view)} bytes, its directory announces {directory.size}")
        data = np.frombuffer(view, dtype=np.uint8)
        if data.ctypes.data % 4:
            data = data.copy()  # every section begins at a multiple of 4: one copy aligns them all
        return data, directory

    def settings_to_read(self, directories: Sequence[Directory]) -> kernel.Settings | None:
        """How the blocks of payloads with equal headers were coded; None if some were written in another way."""
        entries = [entry for directory in directories for entry in directory.entries]
        if not entries or any(entry.mode is not Mode.CODED for entry in entries):
            return None
        header = directories[0].header
        return kernel.Settings(
            quantizer=header.quantizer,
            levels=tuple(entry.levels for entry in entries),
            refined_tokens=header.refined_tokens,
            refine_bits=header.refine_bits,
            anchor_group=header.anchor_group,
            fold=header.fold,
            group=header.group,
            tables=self._tables[header.fingerprint],
        )

    def decode_blocks(self, blocks: Sequence[Block]) -> None:
        """Fill in the values of blocks of payloads of this method. Raises BlobError."""
        with self._compute.applied():
            decode_blocks(blocks, self._tables, self.backend, self._compute.elements)


def blocks_of(directory: Directory, data: Array, wanted: range, out: Array) -> Iterator[Block]:
    """Blocks ``wanted`` of a whole payload ``data``; their values go to ``out``, which holds these blocks alone."""
    header = directory.header
    places = out.reshape(len(wanted), header.num_tokens, header.channels)
    for place, index in zip(places, wanted, strict=True):
        entry = directory.entries[index]
        yield Block(
            header,
            index,
            entry,
            data[entry.fixed_start : entry.fixed_start + entry.fixed_bytes],
            data[entry.data_start : entry.data_start + entry.data_bytes],
            place,
        )
