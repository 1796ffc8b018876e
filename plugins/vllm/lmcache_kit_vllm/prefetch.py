"""Prefixes on their way from the cache to the staging memory, before vLLM is told of them.

What was staged cannot fail any more: a damaged chunk or a server that went away makes a prefix shorter before the
scheduler counts on it, never afterwards.
"""

from __future__ import annotations

import concurrent.futures
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from lmcache_kit.clock import Clock
from lmcache_kit.errors import LMCacheKitError
from lmcache_kit.instance.store.results import LoadedPrefix
from lmcache_kit.kv.layout import KVLayout, KVTensor
from lmcache_kit_vllm.cache_thread import CacheThread
from lmcache_kit_vllm.staging import Piece, Staging
from lmcache_kit_vllm.tallies import Tallies

__all__ = ["Prefetch", "Prefetcher"]

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Prefetch:
    """One prefix, staged or on its way.

    Args:
        start: first token of it, a chunk boundary.
        limit: where it ends at most.
        began: when it was asked for.
        computed: tokens that vLLM had of itself when it asked last.
        future: done when it is staged; gives the load and the tokens that the cache holds from the first one on.
        piece: staging memory, None as long as nothing was found.
    """

    start: int
    limit: int
    began: float
    computed: int = 0
    future: concurrent.futures.Future[tuple[LoadedPrefix | None, int]] | None = None
    piece: Piece | None = None

    @property
    def done(self) -> bool:
        return self.future is None or self.future.done()

    def result(self) -> tuple[LoadedPrefix | None, int]:
        """The load, None when it failed, and the tokens held. Only once it is done."""
        if self.future is None or self.future.cancelled():
            return None, 0
        return self.future.result()

    @property
    def stop(self) -> int:
        """Where the staged tokens end; ``start`` when there are none. Only once it is done."""
        loaded, _ = self.result()
        return self.start if loaded is None else loaded.start + loaded.num_tokens


class Prefetcher:
    """Stages prefixes.

    Args:
        cache: where they come from.
        staging: where they go.
        clock: for how long they take.
        tallies: told prefixes that are cut because the staging memory is full.
    """

    def __init__(self, cache: CacheThread, staging: Staging, clock: Clock, tallies: Tallies) -> None:
        self._cache = cache
        self._staging = staging
        self._clock = clock
        self._tallies = tallies

    def begin(self, tokens: Sequence[int], *, start: int, limit: int) -> Prefetch:
        """Stage the prefix of ``tokens`` behind token ``start``, as far as the cache holds it; never raises.

        With ``limit`` at or below ``start``, it is only asked how much the cache holds.
        """
        size = self._cache.store.hasher.spec.chunk_size
        prefetch = Prefetch(start - start % size, limit, self._clock.now())
        try:
            prefetch.future = self._cache.submit(self._stage(prefetch, list(tokens), start))
        except LMCacheKitError as error:
            log.warning("the cache is not asked: %s", error.detail)
        return prefetch

    async def _stage(self, prefetch: Prefetch, tokens: list[int], start: int) -> tuple[LoadedPrefix | None, int]:
        def make(layout: KVLayout, num_tokens: int) -> KVTensor:
            piece = self._staging.allocate(num_tokens, fewer=True)
            if piece is None or piece.num_tokens < num_tokens:
                self._tallies.add("staging_full", 1)
            if piece is None:
                return KVTensor.empty(layout, 0)
            prefetch.piece = piece
            return self._staging.tensor(piece)

        store = self._cache.store
        try:
            loaded = None
            if start < prefetch.limit:
                loaded = await store.load_prefix(tokens, start=start, limit=prefetch.limit, make=make)
            # Asked afterwards: the load drops what is damaged.
            return loaded, max(store.lookup(tokens).values(), default=0)
        except LMCacheKitError as error:
            log.warning("no cached prefix is used: %s", error.detail)
        except Exception:  # a storage plugin may raise anything; the prompt can still be computed
            log.exception("no cached prefix is used")
        return None, 0

    def release(self, prefetch: Prefetch) -> None:
        """Give the staged prefix up, now or as soon as it is staged; exactly once."""
        if prefetch.future is None:
            return
        prefetch.future.add_done_callback(lambda _: self._free(prefetch))

    def take(self, prefetch: Prefetch) -> Piece:
        """The staging memory of a prefetch that found something; the caller releases it."""
        piece, prefetch.piece = prefetch.piece, None
        assert piece is not None
        return piece

    def _free(self, prefetch: Prefetch) -> None:
        piece, prefetch.piece = prefetch.piece, None
        if piece is not None:
            self._staging.release(piece)
