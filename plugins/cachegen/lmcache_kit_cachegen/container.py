"""The payload around the blocks: header, directory, checksums. docs/reference/cachegen.md has it byte by byte."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from lmcache_kit.errors import BlobError
from lmcache_kit.kv.layout import DTYPES, KVLayout

__all__ = ["BlockEntry", "Mode", "PayloadReader", "Shape", "write_payload"]

MAGIC = b"CGKV"
_QUANTIZER_LMCACHE = 0
_PROBABILITY_BITS = 10

# magic | quantizer, dtype, planes, probability bits | layers, heads, head dim, lanes per group | tokens, fold
_HEADER = struct.Struct("<4s BBBB HHHH II")
# mode, levels, zero | CRC-32 and length of the block
_ENTRY = struct.Struct("<BBH I Q")
_CRC = struct.Struct("<I")


class Mode(IntEnum):
    """How a block's body is written."""

    VERBATIM = 0
    PACKED = 1
    CODED = 2


@dataclass(frozen=True, slots=True)
class Shape:
    """What all blocks of a payload share: ``group`` lanes per run, ``fold`` coder steps per token."""

    layout: KVLayout
    num_tokens: int
    fold: int
    group: int

    @property
    def channels(self) -> int:
        return self.layout.num_kv_heads * self.layout.head_dim

    @property
    def lanes(self) -> int:
        return self.channels // self.fold

    @property
    def blocks(self) -> int:
        return self.layout.num_layers * self.layout.planes


@dataclass(frozen=True, slots=True)
class BlockEntry:
    """One (layer, plane) in the directory."""

    mode: Mode
    levels: int
    crc: int
    start: int
    length: int


def _header(shape: Shape) -> bytes:
    layout = shape.layout
    return _HEADER.pack(
        MAGIC,
        _QUANTIZER_LMCACHE,
        DTYPES.index(layout.dtype),
        layout.planes,
        _PROBABILITY_BITS,
        layout.num_layers,
        layout.num_kv_heads,
        layout.head_dim,
        shape.group,
        shape.num_tokens,
        shape.fold,
    )


def write_payload(shape: Shape, blocks: Sequence[tuple[Mode, int, Sequence[bytes | memoryview]]]) -> bytes:
    """Header, directory, its checksum, then the blocks; each block is (mode, levels, the parts of its body)."""
    head, bodies = [_header(shape)], []
    for mode, levels, parts in blocks:
        body = b"".join(parts)
        head.append(_ENTRY.pack(mode, levels, 0, zlib.crc32(body), len(body)))
        bodies.append(body)
    start = b"".join(head)
    return b"".join([start, _CRC.pack(zlib.crc32(start)), *bodies])


class PayloadReader:
    """A payload whose header and directory have been checked; blocks are checked when they are read.

    Raises BlobError for anything but the header and directory of a payload of this layout and token count.
    """

    def __init__(self, payload: memoryview, layout: KVLayout, num_tokens: int) -> None:
        self._payload = payload.cast("B")
        size = len(self._payload)
        count = layout.num_layers * layout.planes
        directory_end = _HEADER.size + count * _ENTRY.size
        body = directory_end + _CRC.size
        if size < body:
            raise BlobError(f"cachegen payload of {size} bytes ends within its header")
        head = self._payload[:directory_end]
        if zlib.crc32(head) != _CRC.unpack_from(self._payload, directory_end)[0]:
            raise BlobError("cachegen header is damaged: its checksum differs")
        *_, group, _tokens, fold = _HEADER.unpack_from(head)
        self.shape = Shape(layout, num_tokens, fold, group)
        if bytes(head[: _HEADER.size]) != _header(self.shape):
            raise BlobError("cachegen header names another format, shape or dtype than the blob does")
        if fold < 1 or group < 1 or self.shape.channels % fold:
            raise BlobError(f"cachegen header holds impossible lanes: fold {fold}, group {group}")
        self.entries: list[BlockEntry] = []
        for index in range(count):
            mode, levels, zero, crc, length = _ENTRY.unpack_from(head, _HEADER.size + index * _ENTRY.size)
            if mode not in tuple(Mode) or zero:
                raise BlobError(f"cachegen block {index} has unknown mode {mode}")
            self.entries.append(BlockEntry(Mode(mode), levels, crc, body, length))
            body += length
        if body != size:
            raise BlobError(f"cachegen payload has {size} bytes, its directory announces {body}")

    def body(self, index: int) -> memoryview:
        """The bytes of block ``index`` (``layer * planes + plane``) after checking them. Raises BlobError."""
        entry = self.entries[index]
        body = self._payload[entry.start : entry.start + entry.length]
        if zlib.crc32(body) != entry.crc:
            raise BlobError(f"cachegen block {index} is damaged: its checksum differs")
        return body
