"""Tokens of finished requests, counted by instance and by location."""

from __future__ import annotations

from typing import Any

from lmcache_kit.client import Completion
from lmcache_kit.traffic.request import Request

__all__ = ["Tally"]


class Tally:
    """Requests and tokens of one instance.

    Args:
        chunk_size: the instance's, in tokens; None when it does not tell.
    """

    __slots__ = (
        "by_location",
        "cached_tokens",
        "chunk_size",
        "failed",
        "full_chunk_tokens",
        "prompt_tokens",
        "served",
        "tells",
    )

    def __init__(self, chunk_size: int | None) -> None:
        self.chunk_size = chunk_size
        self.served = self.failed = 0
        self.prompt_tokens = self.cached_tokens = self.full_chunk_tokens = 0
        self.by_location: dict[str, int] = {}
        self.tells = True
        """Whether the instance told where cached tokens came from, each time that there were some."""

    def add(self, request: Request, done: Completion, cached: int) -> None:
        """Count a request that the instance answered."""
        prompt = request.record.input_tokens
        self.served += 1
        self.prompt_tokens += prompt
        if cached:
            self.cached_tokens += cached
            if self.chunk_size is not None:
                self.full_chunk_tokens += whole(prompt, cached, self.chunk_size) * self.chunk_size
            places = done.cache.get("cached_tokens_by_location")
            self.tells &= places is not None
            held = self.by_location
            for location, tokens in (places or {}).items():
                held[location] = held.get(location, 0) + tokens

    def values(self, most_in_flight: int, times_down: int) -> dict[str, Any]:
        """As they stand in the report."""
        return {
            "requests": self.served + self.failed,
            "failed": self.failed,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "hit_rate": ratio(self.cached_tokens, self.prompt_tokens),
            "cached_tokens_by_location": dict(sorted(self.by_location.items())) if self.tells else None,
            "most_in_flight": most_in_flight,
            "times_away": times_down,
        }


def whole(prompt: int, cached: int, size: int) -> int:
    """Blocks of ``size`` tokens that ``cached`` tokens of a prompt fill; a prompt's partial last block is none.

    An instance computes a prompt's last token even when it holds all, so all but one means all.
    """
    return (prompt if cached >= prompt - 1 else cached) // size


def ratio(part: int, of: int) -> float | None:
    """None of nothing."""
    return part / of if of else None
