"""The method: which blocks are coded how, and in which batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from lmcache_kit_kernels import rans, tables
from lmcache_kit_kernels.errors import CorruptStreamError
from lmcache_kit_kernels.quantize import dequantize, quantize, representable

from lmcache_kit.contracts.compression import CompressionMethod
from lmcache_kit.errors import BlobError, InvalidRequestError
from lmcache_kit.kv.layout import KVLayout, KVTensor
from lmcache_kit_cachegen.blocks import (
    CodedBlock,
    coded_size,
    packed_block_size,
    read_coded,
    read_packed,
    read_verbatim,
    write_coded,
    write_packed,
)
from lmcache_kit_cachegen.container import Mode, PayloadReader, Shape, write_payload
from lmcache_kit_cachegen.levels import lmcache_levels
from lmcache_kit_cachegen.plugin import CacheGenOptions

__all__ = ["CacheGen", "fold_of"]

Array = np.ndarray[Any, np.dtype[Any]]
Body = tuple[Mode, int, Sequence[bytes | memoryview]]

# Steps that a lane should have: each lane costs 16 bits beyond its symbols.
_LANE_STEPS = 512
# Elements of a batch of blocks: large enough for the coder's lanes, small enough for memory.
_BATCH_ELEMENTS = 1 << 22
# Kernel backend of quantizing, fitting and coding. XLA on a CPU is slow at histograms.
_KERNELS = {"numpy": ("numpy", "numpy", "numpy"), "xla": ("xla", "numpy", "xla")}
# XLA codes faster once it has compiled, but compiles for each new chunk shape, which costs more than coding tens of
# chunks: docs/reference/cachegen.md has the figures.
_AUTO = "numpy"


def fold_of(num_tokens: int, channels: int) -> int:
    """Coder steps per token: the smallest power of two that divides the channels and gives a lane 512 steps, or the
    largest that divides them. Short chunks so have fewer lanes, whose fixed cost would outweigh their symbols."""
    fold = 1
    while fold * num_tokens < _LANE_STEPS and channels % (2 * fold) == 0:
        fold *= 2
    return fold


class CacheGen(CompressionMethod):
    """CacheGen's scheme with LMCache's quantizer, on the CPU.

    Every (layer, plane) is a block of its own. A block is entropy coded, or packed in 4 or 5 bits a symbol where that
    is smaller; both decode to ``dequantize(quantize(block))`` exactly. A block with a value that the quantizer cannot
    represent (infinity, NaN, or a token whose largest value is below 2**-100) is kept verbatim, and so is one with a
    single channel where anything else would be larger; the latter's values are equal to the quantizer's.
    """

    version = 1
    device = "cpu"

    def __init__(self, options: CacheGenOptions) -> None:
        self.backend = _AUTO if options.backend == "auto" else options.backend
        self._quantizer, self._fitter, self._coder = _KERNELS[self.backend]

    def encode(self, kv: KVTensor) -> bytes:
        """Raises InvalidRequestError for a chunk of more than 32,768 tokens."""
        layout, num_tokens = kv.layout, kv.num_tokens
        if num_tokens > tables.MAX_TOKENS:
            raise InvalidRequestError(
                f"cachegen codes at most {tables.MAX_TOKENS} tokens in a chunk, got {num_tokens}",
                hint="use a smaller chunk size",
            )
        channels = layout.num_kv_heads * layout.head_dim
        shape = Shape(layout, num_tokens, fold_of(num_tokens, channels), rans.GROUP_LANES)
        blocks = kv.data.reshape(shape.blocks, num_tokens, channels)
        levels = lmcache_levels(layout.num_layers, layout.planes)
        bodies: list[Body] = [(Mode.VERBATIM, 0, ())] * shape.blocks
        for level, indices in _batches(levels, shape, range(shape.blocks)):
            for index, body in zip(indices, self._encode_batch(shape, blocks[indices], level), strict=True):
                bodies[index] = body
        return write_payload(shape, bodies)

    def _encode_batch(self, shape: Shape, blocks: Array, levels: int) -> Iterator[Body]:
        if shape.num_tokens == 0:
            yield from [(Mode.VERBATIM, 0, ())] * len(blocks)
            return
        symbols, maxima = quantize(blocks, np.full(len(blocks), levels), backend=self._quantizer)
        usable = representable(maxima)
        centres, chosen = tables.fit(symbols, levels, backend=self._fitter)
        streams = rans.encode(
            _fold(tables.centre(symbols, centres, levels), shape),
            _fold(chosen[:, None], shape),
            levels,
            group=shape.group,
            backend=self._coder,
        )
        ends = np.cumsum(streams.counts.sum(axis=1, dtype=np.int64))
        for index in range(len(blocks)):
            words = streams.words[0 if index == 0 else ends[index - 1] : ends[index]]
            packed, coded = packed_block_size(shape, levels), coded_size(shape, levels, words.size)
            if not usable[index] or min(packed, coded) > blocks[index].nbytes:
                yield Mode.VERBATIM, 0, [_little_endian(blocks[index])]
            elif packed <= coded:
                yield Mode.PACKED, levels, write_packed(maxima[index], symbols[index], levels)
            else:
                block = CodedBlock(
                    maxima[index], centres[index], chosen[index], streams.counts[index], streams.states[index], words
                )
                yield Mode.CODED, levels, write_coded(block, levels)

    def decode(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> KVTensor:
        """Raises BlobError for a payload that :meth:`encode` did not write or that was damaged since."""
        reader = self._open(payload, layout, num_tokens, version)
        return KVTensor(layout, self._decode_blocks(reader, range(reader.shape.blocks), layout.num_layers))

    def decode_layers(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> Iterator[KVTensor]:
        """One tensor ``[1, P, T, H, D]`` per layer; a layer's bytes are looked at only when it is asked for."""
        reader = self._open(payload, layout, num_tokens, version)
        one = KVLayout(1, layout.num_kv_heads, layout.head_dim, layout.dtype, layout.planes)
        for layer in range(layout.num_layers):
            blocks = range(layer * layout.planes, (layer + 1) * layout.planes)
            yield KVTensor(one, self._decode_blocks(reader, blocks, 1))

    def _open(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> PayloadReader:
        if version != self.version:
            raise BlobError(f"cachegen payload version {version} is not readable, this build reads {self.version}")
        return PayloadReader(memoryview(payload), layout, num_tokens)

    def _decode_blocks(self, reader: PayloadReader, wanted: range, layers: int) -> Array:
        shape = reader.shape
        out = np.empty((len(wanted), shape.num_tokens, shape.channels), dtype=shape.layout.np_dtype)
        coded = []
        for index in wanted:
            entry, place = reader.entries[index], index - wanted.start
            if entry.mode is Mode.CODED and shape.num_tokens:
                coded.append(index)
            elif entry.mode is Mode.PACKED:
                maxima, symbols = read_packed(reader.body(index), shape, entry.levels)
                out[place] = self._values(symbols[None], maxima[None], entry.levels)[0]
            elif entry.mode is Mode.VERBATIM:
                out[place] = read_verbatim(reader.body(index), shape)
            else:
                raise BlobError(f"cachegen block {index} is coded but there are no tokens")
        levels = np.array([entry.levels for entry in reader.entries])
        for level, indices in _batches(levels, shape, coded):
            bodies = [read_coded(reader.body(index), shape, level) for index in indices]
            out[np.array(indices) - wanted.start] = self._decode_batch(shape, bodies, level)
        layout = shape.layout
        return out.reshape(layers, layout.planes, shape.num_tokens, layout.num_kv_heads, layout.head_dim)

    def _decode_batch(self, shape: Shape, bodies: Sequence[CodedBlock], levels: int) -> Array:
        streams = rans.Streams(
            np.stack([body.states for body in bodies]).astype(np.uint32, copy=False),
            np.stack([body.counts for body in bodies]).astype(np.uint32, copy=False),
            np.concatenate([body.words for body in bodies]).astype(np.uint16, copy=False),
        )
        chosen = np.stack([body.tables for body in bodies])
        try:
            centred = rans.decode(
                streams,
                _fold(chosen[:, None], shape),
                levels,
                shape.num_tokens * shape.fold,
                group=shape.group,
                backend=self._coder,
            )
        except CorruptStreamError as error:
            raise BlobError(f"cachegen block: {error}") from None
        centres = np.stack([body.centres for body in bodies])
        symbols = tables.uncentre(centred.reshape(len(bodies), shape.num_tokens, shape.channels), centres, levels)
        return self._values(symbols, np.stack([body.maxima for body in bodies]), levels)

    def _values(self, symbols: Array, maxima: Array, levels: int) -> Array:
        return dequantize(symbols, maxima, np.full(len(symbols), levels), backend=self._quantizer)


def _batches(levels: Array, shape: Shape, indices: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """``indices`` in groups of equal levels and bounded size, as (levels, indices)."""
    size = max(1, _BATCH_ELEMENTS // max(1, shape.num_tokens * shape.channels))
    for level in sorted({int(levels[index]) for index in indices}):
        some = [index for index in indices if levels[index] == level]
        for start in range(0, len(some), size):
            yield level, some[start : start + size]


def _fold(rows: Array, shape: Shape) -> Array:
    """``[B, R, C]`` as ``[B, R * fold, lanes]``: a token's channels become ``fold`` steps of the lanes."""
    return rows.reshape(len(rows), -1, shape.lanes)


def _little_endian(block: Array) -> bytes:
    return block.view(f"u{block.itemsize}").astype(f"<u{block.itemsize}").tobytes()
