"""What the store answers to the engine side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lmcache_kit.kv.layout import KVTensor

__all__ = ["ChunkHit", "LoadedPrefix", "SaveResult"]


@dataclass(frozen=True, slots=True)
class ChunkHit:
    """One chunk of a loaded prefix: where it came from, how many of its tokens are used, its size and codec there."""

    location: str
    num_tokens: int
    stored_bytes: int
    codec: str


@dataclass(frozen=True, slots=True)
class LoadedPrefix:
    """The longest servable prefix.

    Args:
        kv: KV of ``num_tokens`` tokens; None when that is 0.
        num_tokens: how many tokens were loaded.
        hits: what they came from, in the order of the prefix.
        seconds: the load took.
        start: the first token of ``kv``, a chunk boundary; 0 unless the load was told to begin later.
    """

    kv: KVTensor | None
    num_tokens: int
    hits: list[ChunkHit]
    seconds: float
    start: int = 0


@dataclass(frozen=True, slots=True)
class SaveResult:
    """What a save did.

    Args:
        num_tokens: tokens stored now.
        num_chunks: chunks stored now.
        held_tokens: tokens that were there already.
        nbytes: bytes written, over all tiers.
        by_location: tokens stored now per location.
        seconds: from the call to the end of the last write that the placement policy asked for.
        errors: one line for each write that failed or did not fit.
    """

    num_tokens: int
    num_chunks: int
    held_tokens: int
    nbytes: int
    by_location: Mapping[str, int]
    seconds: float
    errors: list[str] = field(default_factory=list)
