"""What the scheduler side knows of each request, and which of its tokens' KV is to be saved when."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lmcache_kit.kv.hashing import HashSpec

__all__ = ["SavePolicy", "TrackedRequest"]


@dataclass(frozen=True, slots=True)
class SavePolicy:
    """Which tokens' KV is stored.

    Args:
        chunks: chunk size, and whether a prompt's last chunk with fewer tokens is stored.
        decoded: whether whole chunks with generated tokens are stored.
    """

    chunks: HashSpec
    decoded: bool

    def boundary(self, token: int) -> int:
        """The last chunk boundary that is not behind ``token``."""
        return token - token % self.chunks.chunk_size

    def held(self, stop: int, limit: int, total: int) -> int:
        """Tokens that the cache holds when a load of at most ``limit`` of ``total`` tokens ended at ``stop``.

        A load that ends at its limit came out of a chunk that is held to its end.
        """
        if stop < limit:
            return stop
        end = min(total, self.boundary(stop - 1) + self.chunks.chunk_size)
        return end if self.chunks.save_unfull_chunk else self.boundary(end)

    def end(self, prompt: int, computed: int) -> int:
        """Where the tokens to store end, when ``prompt`` is the prompt's length and the KV of ``computed`` is there."""
        if computed < prompt:
            return self.boundary(computed)
        end = prompt if self.chunks.save_unfull_chunk else self.boundary(prompt)
        return max(end, self.boundary(computed)) if self.decoded else end


@dataclass(slots=True)
class TrackedRequest:
    """A request that vLLM has given blocks to.

    Args:
        request: vLLM's own, whose tokens grow as they are generated.
        saved: tokens whose KV the cache holds or is about to hold.
        blocks: ids of its blocks, in order.
        facts: what its answer tells about the cache.
        stores: whether its KV may be stored.
    """

    request: Any
    saved: int = 0
    blocks: list[int] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=lambda: {"cached_tokens_by_location": {}, "codecs": {}})
    stores: bool = True

    def give(self, blocks: list[int], *, replace: bool) -> None:
        """Blocks that vLLM has added, or, after a preemption, all of them anew."""
        if replace:
            self.blocks = list(blocks)
        else:
            self.blocks += blocks

    def computed(self, num_computed: int, num_scheduled: int) -> int:
        """Tokens whose KV is final after a step that computes ``num_scheduled`` behind ``num_computed``.

        The prompt's is final as soon as it is computed. That of generated tokens is taken a step late: the last of
        them are a guess when vLLM decodes speculatively or schedules ahead.
        """
        prompt = self.request.num_prompt_tokens
        known = max(prompt, len(self.request.all_token_ids) - 1)
        return int(min(num_computed + num_scheduled, known))
