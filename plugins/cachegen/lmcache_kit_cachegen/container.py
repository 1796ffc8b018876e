"""Header and directory of a payload: what they say, and everything that must hold before a block is looked at.

docs/reference/cachegen.md has the format byte by byte.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lmcache_kit.errors import BlobError
from lmcache_kit.kv.layout import DTYPES, KVLayout
from lmcache_kit_cachegen.header import BUILT_IN, Header, Mode, padded
from lmcache_kit_cachegen.levels import COARSE, FINE, UNIFORM_SYMBOLS
from lmcache_kit_cachegen.sections import coded_limit, data_size, fixed_size

__all__ = [
    "HEADER_BYTES",
    "LARGEST_INVERSE",
    "LEAST_INVERSE",
    "WIDTHS_AT",
    "Directory",
    "Entry",
    "head_size",
    "read_directory",
    "write_directory",
]

MAGIC = b"CGKV"
PROBABILITY_BITS = 10
QUANTIZERS: tuple[Literal["lmcache", "uniform"], ...] = ("lmcache", "uniform")

# magic | quantizer, dtype, planes, probability bits | layers, heads, head dim, lanes per group | tokens, fold, refined
# tokens | refine bits, anchor group, offset bytes, exponent bytes | fingerprint
_HEADER = struct.Struct("<4s BBBB HHHH III BBBB 16s")
# mode, levels, inverse | check, bytes of the fixed part, bytes of the data part
_ENTRY = struct.Struct("<BBH III")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size
WIDTHS_AT = 28  # of the refinements' bits, the anchors' group and the bytes of offsets and exponents, one byte each
_MODES = {int(mode): mode for mode in Mode}
# bfloat16 patterns of 2**-100 and 2**100.
LEAST_INVERSE, LARGEST_INVERSE = (127 - 100) << 7, (127 + 100) << 7


@dataclass(frozen=True, slots=True)
class Entry:
    """One (layer, plane) in the directory; ``fixed_start`` and ``data_start`` count from the payload's first byte."""

    mode: Mode
    levels: int
    inverse: int
    check: int
    fixed_bytes: int
    data_bytes: int
    fixed_start: int = 0
    data_start: int = 0


@dataclass(frozen=True, slots=True)
class Directory:
    """Header and directory after checking them against each other, and the size that the payload must have."""

    header: Header
    entries: Sequence[Entry]
    size: int

    @property
    def data_start(self) -> int:
        """Where the fixed parts end and the data parts begin."""
        return self.entries[0].data_start


def head_size(layout: KVLayout) -> int:
    """Bytes of header, directory and their checksum."""
    return _HEADER.size + layout.num_layers * layout.planes * _ENTRY.size + _CRC.size


def _pack(header: Header) -> bytes:
    layout = header.layout
    return _HEADER.pack(
        MAGIC,
        QUANTIZERS.index(header.quantizer),
        DTYPES.index(layout.dtype),
        layout.planes,
        PROBABILITY_BITS,
        layout.num_layers,
        layout.num_kv_heads,
        layout.head_dim,
        header.group,
        header.num_tokens,
        header.fold,
        header.refined_tokens,
        header.refine_bits,
        header.anchor_group,
        header.offset_bytes,
        header.exponent_bytes,
        header.fingerprint,
    )


def write_directory(header: Header, entries: Sequence[Entry]) -> bytes:
    """Header, directory and their checksum."""
    head = b"".join(
        [
            _pack(header),
            *(
                _ENTRY.pack(entry.mode, entry.levels, entry.inverse, entry.check, entry.fixed_bytes, entry.data_bytes)
                for entry in entries
            ),
        ]
    )
    return head + _CRC.pack(zlib.crc32(head))


def read_directory(head: memoryview, layout: KVLayout, num_tokens: int) -> Directory:
    """Header and directory from the first bytes of a payload, at least :func:`head_size` of them.

    Every size is computed from the header and compared, so that what follows may trust it. Raises BlobError for
    anything but the header and directory of a payload of this layout and token count.
    """
    size = head_size(layout)
    if len(head) < size:
        raise BlobError(f"cachegen payload of {len(head)} bytes ends within its header")
    checked = head[: size - _CRC.size]
    if zlib.crc32(checked) != _CRC.unpack_from(head, size - _CRC.size)[0]:
        raise BlobError("cachegen header is damaged: its checksum differs")
    header = _read_header(checked, layout, num_tokens)
    entries = [_checked(index, entry, header) for index, entry in enumerate(_entries(checked))]
    fixed = size
    data = size + sum(entry.fixed_bytes for entry in entries)
    placed = []
    for entry in entries:
        placed.append(_placed(entry, fixed, data))
        fixed += entry.fixed_bytes
        data += entry.data_bytes
    return Directory(header, placed, data)


def _placed(entry: Entry, fixed: int, data: int) -> Entry:
    return Entry(entry.mode, entry.levels, entry.inverse, entry.check, entry.fixed_bytes, entry.data_bytes, fixed, data)


def _read_header(head: memoryview, layout: KVLayout, num_tokens: int) -> Header:
    magic, quantizer, *_, group, _tokens, fold, refined, bits, anchor, offset_bytes, exponent_bytes, fingerprint = (
        _HEADER.unpack_from(head)
    )
    if magic != MAGIC or quantizer >= len(QUANTIZERS):
        raise BlobError("cachegen header names another format or an unknown quantizer")
    header = Header(
        layout=layout,
        num_tokens=num_tokens,
        quantizer=QUANTIZERS[quantizer],
        group=group,
        fold=fold,
        refined_tokens=refined,
        refine_bits=bits,
        anchor_group=anchor,
        offset_bytes=offset_bytes,
        exponent_bytes=exponent_bytes,
        fingerprint=fingerprint,
    )
    if bytes(head[: _HEADER.size]) != _pack(header):
        raise BlobError("cachegen header names another shape or dtype than the blob does")
    for wrong in _contradictions(header):
        raise BlobError(f"cachegen header contradicts itself: {wrong}")
    return header


def _contradictions(header: Header) -> Iterator[str]:
    if header.fold < 1 or header.group < 1 or header.channels % header.fold:
        yield f"impossible lanes: fold {header.fold}, group {header.group}, {header.channels} channels"
    if header.refined_tokens > header.num_tokens or (header.refined_tokens > 0) != (header.refine_bits > 0):
        yield f"{header.refined_tokens} of {header.num_tokens} tokens refined by {header.refine_bits} bits"
    if header.quantizer == "lmcache":
        if header.refine_bits or header.offset_bytes or header.exponent_bytes or header.fingerprint != BUILT_IN:
            yield "quantizer lmcache with fields of the other"
    elif header.refine_bits not in (0, 1, 2, 4) or header.offset_bytes not in (1, 2) or header.exponent_bytes > 1:
        yield (
            f"refined by {header.refine_bits} bits, offsets of {header.offset_bytes} and exponents of "
            f"{header.exponent_bytes} bytes"
        )


def _entries(head: memoryview) -> Iterator[Entry]:
    for mode, levels, inverse, check, fixed_bytes, data_bytes in _ENTRY.iter_unpack(head[_HEADER.size :]):
        if mode not in _MODES:
            raise BlobError(f"cachegen directory holds the unknown mode {mode}")
        yield Entry(_MODES[mode], levels, inverse, check, fixed_bytes, data_bytes)


def _checked(index: int, entry: Entry, header: Header) -> Entry:
    if entry.mode in (Mode.VERBATIM, Mode.ZERO):
        right = entry.levels == 0 and entry.inverse == 0
    elif header.num_tokens == 0:
        right = False
    elif header.quantizer == "lmcache":
        right = entry.levels in (FINE, COARSE) and entry.inverse == 0
    else:
        right = entry.levels == UNIFORM_SYMBOLS and LEAST_INVERSE <= entry.inverse <= LARGEST_INVERSE
    if not right:
        raise BlobError(
            f"cachegen block {index} cannot be of mode {entry.mode.name.lower()}, {entry.levels} levels and inverse "
            f"{entry.inverse}"
        )
    right = entry.fixed_bytes == fixed_size(header, entry.mode, entry.levels)
    if entry.mode is Mode.CODED:
        right = right and entry.data_bytes == padded(entry.data_bytes) and entry.data_bytes <= coded_limit(header)
    else:
        right = right and entry.data_bytes == data_size(header, entry.mode, entry.levels)
    if not right:
        raise BlobError(f"cachegen block {index} cannot have parts of {entry.fixed_bytes} and {entry.data_bytes} bytes")
    return entry
