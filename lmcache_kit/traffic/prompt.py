"""A prompt that is known by its blocks: what traces and generators give instead of text.

Two prompts share exactly the tokens that their block ids say. On the wall clock the tokens are made up, the same for
the same block everywhere; a simulation never makes them, since a chunk's end within a block names the prefix already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

from lmcache_kit.contracts.trace import TraceRecord

__all__ = ["VOCABULARY", "BlockPrompt", "chunk_identity"]

VOCABULARY = 256
"""Tokens made up are below this: every engine's vocabulary has as many."""

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


class BlockPrompt(Sequence[int]):
    """The prompt of a trace's record, as token ids that are made when they are first asked for.

    Args:
        record: how many tokens, and the chained ids of their blocks.
        block_size: tokens of a full block, at least 1.
        unique: stands for the tail of a prompt whose format gives a partial last block no id; different for every
            prompt that is not to share its tail, at least 0.
    """

    __slots__ = ("_chunks", "_tokens", "block_size", "record", "unique")

    def __init__(self, record: TraceRecord, block_size: int, *, unique: int) -> None:
        self.record = record
        self.block_size = block_size
        self.unique = unique
        self._tokens: list[int] | None = None
        self._chunks: dict[tuple[int, bool], list[tuple[int, int]]] = {}

    def __len__(self) -> int:
        return self.record.input_tokens

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> list[int]: ...
    def __getitem__(self, place: int | slice) -> int | list[int]:
        return self._made()[place]

    def __iter__(self) -> Iterator[int]:
        return iter(self._made())

    def blocks(self) -> list[int]:
        """Chained ids of all blocks; those of a tail without an id are made from ``unique``: below 0."""
        record = self.record
        ids = list(record.block_ids)
        if record.tail_id is not None:
            ids.append(record.tail_id)
        elif record.tail_tokens:
            # The tail may be longer than a block, in formats that know only how a prompt begins.
            blocks = -(-record.tail_tokens // self.block_size)
            ids.extend(-1 - self.unique - place * _GOLDEN for place in range(blocks))
        return ids

    def chunks(self, chunk_size: int, *, partial: bool) -> list[tuple[int, int]]:
        """``(stop, identity)`` of each chunk of ``chunk_size`` tokens, in order; a partial last one if ``partial``.

        Chunks of two prompts have equal identities exactly when the prompts agree up to the end of the chunk.
        """
        known = self._chunks.get((chunk_size, partial))
        if known is not None:  # the router asks, and then the instance
            return known
        blocks, size = self.blocks(), self.block_size
        total = len(self)
        last = total if partial else total - total % chunk_size
        found = self._chunks[chunk_size, partial] = []
        whole = last // chunk_size
        if chunk_size == size:
            found += [
                (stop, chunk_identity(block, size - 1))
                for stop, block in zip(range(size, whole * size + 1, size), blocks, strict=False)
            ]
        else:
            for stop in range(chunk_size, whole * chunk_size + 1, chunk_size):
                block, within = divmod(stop - 1, size)
                found.append((stop, chunk_identity(blocks[block], within)))
        if whole * chunk_size < last:
            found.append((last, chunk_identity(blocks[(last - 1) // size], (last - 1) % size)))
        return found

    def _made(self) -> list[int]:
        if self._tokens is None:
            parts = [_tokens_of(block, self.block_size) for block in self.blocks()]
            whole = np.concatenate(parts) if parts else np.zeros(0, np.int64)
            self._tokens = whole[: len(self)].tolist()
        return self._tokens


def chunk_identity(block: int, within: int) -> int:
    """What a chunk that ends at token ``within`` of a block is called: 64 bits without a sign, as a hash has."""
    value = (block & _MASK) * _GOLDEN + within * 0xD1B54A32D192ED03 & _MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31


def _tokens_of(block: int, size: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    words = np.arange(1, size + 1, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(chunk_identity(block, 0))
    words ^= words >> np.uint64(29)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    return (words >> np.uint64(56)).astype(np.int64)
