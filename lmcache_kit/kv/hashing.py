"""Chunk hashes, equal to those of LMCache workers with the same algorithm and seed.

Each chunk's hash covers its tokens and, through the previous chunk's hash, every token before it:
``h_i = f((h_{i-1}, tokens_i, ()))`` with ``h_{-1} = NONE_HASH`` (reference: LMCache's ChunkedTokenDatabase).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import blake3 as _blake3
import cbor2

from lmcache_kit.errors import InvalidRequestError, UnknownNameError
from lmcache_kit.kv.pickle_bytes import pickle_bytes

__all__ = ["HASH_ALGORITHMS", "ChunkHasher", "HashSpec", "default_none_hash"]

HashFunction = Callable[[object], int | bytes]


def _builtin(value: object) -> int:
    # CPython's tuple hash: fast, and what LMCache workers use by default. The extra keys are None in vLLM's own
    # block hash but an empty tuple in LMCache's, and that difference changes every hash.
    return hash(value)


def _cbor(value: object) -> bytes:
    return cbor2.dumps(value, canonical=True)


def _sha256_cbor(value: object) -> bytes:
    return hashlib.sha256(_cbor(value)).digest()


def _sha256(value: object) -> bytes:
    return hashlib.sha256(pickle_bytes(value)).digest()


def _blake3_cbor(value: object) -> bytes:
    return _blake3.blake3(_cbor(value)).digest()


HASH_ALGORITHMS: dict[str, HashFunction] = {
    "builtin": _builtin,
    "sha256_cbor": _sha256_cbor,
    "sha256": _sha256,
    "blake3": _blake3_cbor,
}
_ALIASES = {"sha256_cbor_64bit": "sha256_cbor"}
_TEXT_WITHOUT_SEED = "vllm-none-hash"
_OF_VLLM = ("sha256_cbor", "sha256")
"""LMCache takes these functions, and their first hash, from vLLM; without vLLM it has builtin alone."""


def default_none_hash(algorithm: str) -> int:
    """The hash before the first chunk that a worker of this process's environment would use.

    With ``PYTHONHASHSEED`` set to a number it is the hash of that text, as vLLM computes it, so a controller started
    with the same seed as its workers agrees with them. Without a seed it is what vLLM has for the SHA-256 algorithms,
    the same in every process, and 0 for the others.
    """
    seed = os.environ.get("PYTHONHASHSEED", "")
    if algorithm in _OF_VLLM:
        seed = seed or _TEXT_WITHOUT_SEED
        return fold(HASH_ALGORITHMS[algorithm](seed))
    return fold(HASH_ALGORITHMS[algorithm](seed)) if seed.isdigit() else 0


def fold(digest: int | bytes) -> int:
    """The integer of the chain and of the wire: an int as it is, a digest's first 8 bytes big-endian."""
    return digest if isinstance(digest, int) else int.from_bytes(digest[:8], "big")


@dataclass(frozen=True, slots=True)
class HashSpec:
    """What two sides must share for their chunk hashes to be equal.

    Args:
        chunk_size: tokens per chunk, at least 1.
        algorithm: a name of :data:`HASH_ALGORITHMS`.
        none_hash: hash before the first chunk.
        save_unfull_chunk: whether a last chunk with fewer than ``chunk_size`` tokens is kept.
    """

    chunk_size: int = 256
    algorithm: str = "builtin"
    none_hash: int = 0
    save_unfull_chunk: bool = True

    def __post_init__(self) -> None:
        if self.chunk_size < 1:
            raise InvalidRequestError(f"chunk_size must be at least 1, got {self.chunk_size}")
        object.__setattr__(self, "algorithm", _ALIASES.get(self.algorithm, self.algorithm))
        if self.algorithm not in HASH_ALGORITHMS:
            raise UnknownNameError("hash algorithm", self.algorithm, HASH_ALGORITHMS)


class ChunkHasher:
    """Splits tokens into chunks and hashes them along the prefix, following one :class:`HashSpec`."""

    def __init__(self, spec: HashSpec) -> None:
        self.spec = spec
        self._hash = HASH_ALGORITHMS[spec.algorithm]

    def hashes(self, tokens: Sequence[int]) -> list[int]:
        """One hash per chunk, in order; a partial last chunk is hashed when the spec keeps it."""
        return [key for _, _, key in self.chunks(tokens)]

    def chunks(self, tokens: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """``(start, stop, hash)`` of each chunk; ``stop`` is exclusive.

        Tokens that are known by their blocks name their chunks themselves, with a method ``chunks(chunk_size,
        partial=...)``, so that a simulation never makes a token.
        """
        size, total = self.spec.chunk_size, len(tokens)
        named = getattr(tokens, "chunks", None)
        if named is not None:
            start = 0
            for stop, identity in named(size, partial=self.spec.save_unfull_chunk):
                yield start, stop, identity
                start = stop
            return
        last = total if self.spec.save_unfull_chunk else total - total % size
        parent = self.spec.none_hash
        for start in range(0, last, size):
            stop = min(start + size, last)
            parent = fold(self._hash((parent, tuple(tokens[start:stop]), ())))
            yield start, stop, parent
