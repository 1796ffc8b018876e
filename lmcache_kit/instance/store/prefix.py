"""A prompt's chunks as the store names them."""

from __future__ import annotations

from collections.abc import Sequence

from lmcache_kit.instance.store.reader import Chunk
from lmcache_kit.kv.hashing import ChunkHasher
from lmcache_kit.kv.keys import ChunkKey

__all__ = ["chunks_of"]


def chunks_of(hasher: ChunkHasher, model: str, tokens: Sequence[int]) -> list[Chunk]:
    """The chunks of ``tokens`` under the model's fingerprint, in order; a partial last one if the spec keeps it."""
    chunks = []
    for start, stop, value in hasher.chunks(tokens):
        key = ChunkKey(model, value)
        chunks.append(Chunk(start, stop, key, key.name()))
    return chunks
