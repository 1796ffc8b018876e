"""Parts of blocks back to values. Whatever is wrong with them is a BlobError, found before it can do harm.

Everything is checked before anything is decoded. Ranges of blocks then go from bytes to values each on one core.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from lmcache_kit_kernels import blocks as kernel
from lmcache_kit_kernels.checks import weighted_sum
from lmcache_kit_kernels.errors import CorruptStreamError
from lmcache_kit_kernels.packing import packed_size, unpack_rows
from lmcache_kit_kernels.tables import TableSet
from lmcache_kit_kernels.threads import block_ranges, in_parallel

from lmcache_kit.errors import BlobError
from lmcache_kit_cachegen.container import Entry
from lmcache_kit_cachegen.header import Header, Mode, padded
from lmcache_kit_cachegen.sections import from_little, read_fixed, symbol_bits

__all__ = ["Block", "decode_blocks"]

Array = np.ndarray[Any, np.dtype[Any]]
Tables = Mapping[int, TableSet]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A block of a payload at hand: the bytes of its parts (uint8, aligned to 2) and where its values ``[T, C]`` go."""

    header: Header
    index: int
    entry: Entry
    fixed: Array
    data: Array
    out: Array

    def check(self, backend: str) -> None:
        """Raises BlobError unless the parts are those that the directory's check was made of."""
        check = weighted_sum(self.fixed.view("<u2"), backend=backend)
        check += weighted_sum(self.data.view("<u2"), self.fixed.size // 2, backend=backend)
        if check % 2**32 != self.entry.check:
            raise BlobError(f"cachegen block {self.index} is damaged: its checksum differs")


def decode_blocks(blocks: Sequence[Block], tables: Mapping[bytes, Tables], backend: str, elements: int) -> None:
    """Fill the ``out`` of every block. Raises BlobError.

    Args:
        tables: by the fingerprint of the profile; those of every block must be there.
        elements: about how many go into one call of a kernel that takes blocks in one piece.
    """

    ranges = [
        alike[some]
        for alike in _grouped(blocks, lambda block: (block.entry.mode, _settings_key(block))).values()
        for some in _ranges(len(alike), alike[0].out.size, backend, elements)
    ]
    # Only compiled loops work on several cores at once.
    each = in_parallel if backend == "numba" else map
    for _ in each(lambda some: _check(some, backend), ranges):
        pass
    for _ in each(lambda some: _decode(some, tables, backend), ranges):
        pass


def _check(blocks: Sequence[Block], backend: str) -> None:
    for block in blocks:
        block.check(backend)


def _decode(blocks: Sequence[Block], tables: Mapping[bytes, Tables], backend: str) -> None:
    """Blocks of one mode and one way of coding."""
    mode = blocks[0].entry.mode
    if mode in (Mode.PACKED, Mode.CODED):
        _decode_alike(blocks, tables[blocks[0].header.fingerprint], backend)
        return
    for block in blocks:
        if mode is Mode.ZERO:
            block.out[...] = 0
        else:
            _verbatim(block)


def _ranges(count: int, size: int, backend: str, elements: int) -> list[slice]:
    """Blocks that go through the kernels in one call."""
    if backend == "numba":
        return block_ranges(count, size)
    length = max(1, elements // max(1, size))
    return [slice(start, start + length) for start in range(0, count, length)]


def _decode_alike(blocks: Sequence[Block], tables: Tables, backend: str) -> None:
    decode = _packed if blocks[0].entry.mode is Mode.PACKED else _coded
    try:
        values = decode(blocks, tables, backend)
    except CorruptStreamError as error:
        raise BlobError(f"cachegen block: {error}") from None
    for block, value in zip(blocks, values, strict=True):
        # As plain integers: those are copied as a whole, and without the GIL.
        unsigned = f"u{value.itemsize}"
        block.out.view(unsigned)[...] = value.view(unsigned)


def _grouped(items: Sequence[Block], key: Callable[[Block], Key]) -> dict[Key, list[Block]]:
    groups: dict[Key, list[Block]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _settings_key(block: Block) -> Hashable:
    """Blocks with equal keys can share a kernel call, whatever payloads they are from."""
    header = block.header
    return (
        header.layout.dtype,
        header.num_tokens,
        header.channels,
        header.quantizer,
        header.group,
        header.fold,
        header.refined_tokens,
        header.refine_bits,
        header.anchor_group,
        header.fingerprint,
    )


def _settings(blocks: Sequence[Block], tables: Tables) -> kernel.Settings:
    header = blocks[0].header
    return kernel.Settings(
        quantizer=header.quantizer,
        levels=tuple(block.entry.levels for block in blocks),
        refined_tokens=header.refined_tokens,
        refine_bits=header.refine_bits,
        anchor_group=header.anchor_group,
        fold=header.fold,
        group=header.group,
        tables=tables,
    )


def _fixed(blocks: Sequence[Block], backend: str) -> dict[str, Array]:
    """The arrays of the fixed parts of blocks, whose headers may differ in the widths of sections."""
    mode = blocks[0].entry.mode
    arrays: dict[str, Array] = {}
    for (header, levels), alike in _grouped(blocks, lambda block: (block.header, block.entry.levels)).items():
        rows = alike[0].fixed[None] if len(alike) == 1 else np.stack([block.fixed for block in alike])
        parts = read_fixed(header, mode, levels, rows, backend)
        if len(alike) == len(blocks):
            return parts
        places = [place for place, block in enumerate(blocks) if (block.header, block.entry.levels) == (header, levels)]
        for name, part in parts.items():
            arrays.setdefault(name, np.empty((len(blocks), *part.shape[1:]), dtype=part.dtype))[places] = part
    return arrays


def _inverses(blocks: Sequence[Block]) -> Array:
    return np.array([block.entry.inverse for block in blocks], dtype=np.uint16)


def _verbatim(block: Block) -> None:
    size = block.out.nbytes
    if bool(block.data[size:].any()):
        raise BlobError(f"cachegen block {block.index}: padding is not zero")
    block.out[...] = from_little(block.data[None, :size], block.out.dtype).reshape(block.out.shape)


def _packed(blocks: Sequence[Block], tables: Tables, backend: str) -> Array:
    arrays = _fixed(blocks, backend)
    shape, dtype = blocks[0].out.shape, blocks[0].out.dtype
    count = shape[0] * shape[1]
    symbols = np.empty((len(blocks), *shape), dtype=np.uint8)
    for place, block in enumerate(blocks):
        size = packed_size(count, symbol_bits(block.entry.levels))
        if bool(block.data[size:].any()):
            raise BlobError(f"cachegen block {block.index}: padding is not zero")
        width = symbol_bits(block.entry.levels)
        symbols[place] = unpack_rows(block.data[None, :size], count, width, backend=backend).reshape(shape)
        if int(symbols[place].max()) >= block.entry.levels:
            raise BlobError(f"cachegen block {block.index}: a symbol is not below {block.entry.levels}")
    lmcache = blocks[0].header.quantizer == "lmcache"
    quantized = kernel.Quantized(
        scales=arrays["scales"],
        inverses=_inverses(blocks),
        centres=np.zeros((len(blocks), shape[1]), dtype=np.uint8) if lmcache else arrays["centres"],
        symbols=symbols,
        refinements=arrays.get("refinements"),
        usable=np.ones(len(blocks), dtype=bool),
    )
    return kernel.dequantize(quantized, _settings(blocks, tables), dtype, None, backend=backend)


def _coded(blocks: Sequence[Block], tables: Tables, backend: str) -> Array:
    arrays = _fixed(blocks, backend)
    runs = []
    for block, counts in zip(blocks, arrays["counts"], strict=True):
        # Of 64 bits: a sum of forged counts must not wrap around to the right number.
        total = int(counts.sum(dtype=np.uint64))
        words = block.data.view("<u2")
        if padded(2 * total) != block.data.size:
            raise BlobError(f"cachegen block {block.index} holds another number of words than it announces")
        if bool(words[total:].any()):
            raise BlobError(f"cachegen block {block.index}: padding is not zero")
        runs.append(words[:total])
    coded = kernel.Coded(
        scales=arrays["scales"],
        inverses=_inverses(blocks),
        centres=arrays["centres"],
        tables=arrays["tables"],
        flags=arrays.get("flags"),
        refinements=arrays.get("refinements"),
        states=arrays["states"],
        counts=arrays["counts"],
        words=(runs[0] if len(runs) == 1 else np.concatenate(runs)).astype(np.uint16, copy=False),
        usable=np.ones(len(blocks), dtype=bool),
    )
    return kernel.decode(coded, _settings(blocks, tables), blocks[0].out.dtype, backend=backend)
