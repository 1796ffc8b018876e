"""The connector in vLLM's scheduler: asks the cache for prefixes, and plans the ranks' copies step by step.

Nothing here waits for the controller, and for the cache only as long as ``patience`` says in a step.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import logging
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmcache_kit.clock import Clock
from lmcache_kit.errors import LMCacheKitError
from lmcache_kit_vllm.cache_thread import CacheThread
from lmcache_kit_vllm.copies import OpenCopies
from lmcache_kit_vllm.options import ConnectorOptions
from lmcache_kit_vllm.plan import Copy, Report, StepPlan
from lmcache_kit_vllm.prefetch import Prefetch, Prefetcher
from lmcache_kit_vllm.requests import SavePolicy, TrackedRequest
from lmcache_kit_vllm.staging import Piece, Staging
from lmcache_kit_vllm.tallies import Tallies

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

__all__ = ["SchedulerSide"]

log = logging.getLogger(__name__)

_BUSY = 0.1
"""Share of the patience in a step that follows one with work: others are waiting for their next token."""


class SchedulerSide:
    """One engine's.

    Args:
        cache: the instance.
        staging: memory that KV passes through.
        policy: what is stored.
        options: the connector's options.
        block_size: tokens in a block of the scheduler.
        ranks: processes that hold a part of the KV.
        loads, saves: whether prefixes are loaded, and KV stored (vLLM's ``kv_role``).
        clock: for times and deadlines.
    """

    def __init__(
        self,
        cache: CacheThread,
        staging: Staging,
        policy: SavePolicy,
        options: ConnectorOptions,
        *,
        block_size: int,
        ranks: int,
        loads: bool,
        saves: bool,
        clock: Clock,
    ) -> None:
        self._cache = cache
        self._staging = staging
        self._policy = policy
        self._options = options
        self._block_size = block_size
        self._loads = loads
        self._saves = saves
        self._clock = clock
        self.tallies = Tallies()
        self._prefetcher = Prefetcher(cache, staging, clock, self.tallies)
        self._prefetches: dict[str, Prefetch] = {}
        self._tracked: dict[str, TrackedRequest] = {}
        self._loading: dict[str, tuple[Piece, int, int, int]] = {}
        self._copies = OpenCopies(ranks)
        self._patience = options.patience

    # --- before a request is scheduled -------------------------------------------------------------------------------

    def matched(self, request: Request, computed: int) -> int | None:
        """How many tokens behind the first ``computed`` can be loaded; None to be asked again in a later step."""
        if not self._loads or not _is_plain(request) or getattr(request, "skip_reading_prefix_cache", False):
            return 0
        # The last token is always computed: its output is the first token of the answer.
        limit = request.num_tokens - 1
        prefetch = self._prefetches.get(request.request_id)
        if prefetch is not None and prefetch.start > computed:  # vLLM has lost a prefix of its own since
            self._forget(request.request_id)
            prefetch = None
        if prefetch is None:
            prefetch = self._prefetcher.begin(request.all_token_ids, start=computed, limit=limit)
            self._prefetches[request.request_id] = prefetch
        prefetch.computed = computed
        self._wait(prefetch)
        if limit <= computed:  # it is only asked what need not be stored; without an answer in time all is offered
            return 0
        if not prefetch.done:
            if self._clock.now() - prefetch.began < self._options.lookup_timeout:
                return None
            log.warning("request %s is computed: the cache has not answered in time", request.request_id)
            self.tallies.add("lookup_timeouts", 1)
            self._forget(request.request_id)
            self._prefetches[request.request_id] = Prefetch(computed, computed, prefetch.began)
            return 0
        return max(0, prefetch.stop - computed)

    def _wait(self, prefetch: Prefetch) -> None:
        """Let the cache finish what takes no time, at most for the step's patience over all requests.

        It also gives the cache's threads the interpreter, which a scheduler that only asks again and again would keep.
        """
        if prefetch.future is None or prefetch.done or self._patience <= 0:
            return
        began = self._clock.now()
        with contextlib.suppress(concurrent.futures.TimeoutError):
            concurrent.futures.wait([prefetch.future], self._patience)
        self._patience -= self._clock.now() - began

    def _forget(self, request_id: str) -> None:
        prefetch = self._prefetches.pop(request_id, None)
        if prefetch is not None:
            self._prefetcher.release(prefetch)

    def allocated(self, request: Request, num_external: int) -> None:
        """vLLM has given the request its blocks, and counts on ``num_external`` tokens of what was matched."""
        known = self._tracked.get(request.request_id)
        tracked = known or TrackedRequest(request, stores=self._saves and _is_plain(request))
        self._tracked[request.request_id] = tracked
        prefetch = self._prefetches.pop(request.request_id, None)
        if prefetch is None:
            if self._loads and known is None and not _is_plain(request):
                self.tallies.add("bypassed_requests", 1)
            return
        loaded, held = prefetch.result() if prefetch.done else (None, 0)
        tracked.saved = max(tracked.saved, held)
        if loaded is not None and loaded.num_tokens:
            whole = self._policy.held(prefetch.stop, prefetch.limit, request.num_tokens)
            tracked.saved = max(tracked.saved, whole)
        self.tallies.add("retrieve_requests", 1)
        self.tallies.add("requested_tokens", request.num_tokens)
        self.tallies.time("time_to_retrieve", loaded.seconds if loaded is not None else 0.0)
        if num_external > 0 and loaded is not None:
            self.tallies.add("hit_tokens", num_external)
            tracked.facts = _facts(loaded, num_external, self._staging.layout.bytes_per_token)
            piece = self._prefetcher.take(prefetch)
            stop = prefetch.computed + num_external
            self._loading[request.request_id] = (piece, prefetch.start, prefetch.computed, stop)
        else:
            self._prefetcher.release(prefetch)

    def hit_locations(self, request_id: str) -> dict[str, int]:
        """How many of the tokens that are loaded for a request come from which location."""
        tracked = self._tracked.get(request_id)
        return dict(tracked.facts["cached_tokens_by_location"]) if tracked is not None else {}

    # --- each step ---------------------------------------------------------------------------------------------------

    def plan(self, output: SchedulerOutput) -> StepPlan:
        """The copies of the step that vLLM has just put together."""
        busy = bool(output.num_scheduled_tokens)
        self._patience = self._options.patience * (_BUSY if busy else 1)
        plan = StepPlan(self._staging.place)
        for new in output.scheduled_new_reqs:
            self._plan_request(
                plan, output, new.req_id, new.block_ids[0], replace=True, computed=new.num_computed_tokens
            )
        cached = output.scheduled_cached_reqs
        for index, request_id in enumerate(cached.req_ids):
            blocks = cached.new_block_ids[index]
            self._plan_request(
                plan,
                output,
                request_id,
                blocks[0] if blocks is not None else [],
                replace=request_id in cached.resumed_req_ids,
                computed=cached.num_computed_tokens[index],
            )
        return plan

    def _plan_request(
        self,
        plan: StepPlan,
        output: SchedulerOutput,
        request_id: str,
        blocks: Sequence[int],
        *,
        replace: bool,
        computed: int,
    ) -> None:
        tracked = self._tracked.get(request_id)
        if tracked is None:
            return
        tracked.give(list(blocks), replace=replace)
        if request_id in self._loading:
            piece, piece_start, start, stop = self._loading.pop(request_id)
            number = self._copies.add(functools.partial(self._loaded, piece))
            plan.loads.append(self._copy(number, piece, piece_start, start, stop, tracked.blocks))
        if not tracked.stores:
            return
        final = tracked.computed(computed, output.num_scheduled_tokens[request_id])
        end = self._policy.end(tracked.request.num_prompt_tokens, final)
        if end <= tracked.saved:
            return
        start = self._policy.boundary(tracked.saved)
        room = self._staging.allocate(end - start)
        if room is None:  # asked again in the request's next step
            self.tallies.add("staging_full", 1)
            return
        tokens = list(tracked.request.all_token_ids[:end])
        number = self._copies.add(functools.partial(self._store, tokens, room, start))
        plan.saves.append(self._copy(number, room, start, start, end, tracked.blocks))
        tracked.saved = end

    def _copy(self, number: int, piece: Piece, piece_start: int, start: int, stop: int, blocks: list[int]) -> Copy:
        first, last = start // self._block_size, (stop - 1) // self._block_size
        return Copy(number, piece, piece_start, start, stop, blocks[first : last + 1])

    def reported(self, report: Report | None) -> None:
        """What the ranks have done."""
        if report is not None:
            self.tallies.add("copy_errors", len(report.failed))
            self._copies.reported(report)

    def _loaded(self, piece: Piece, ok: bool) -> None:
        self._staging.release(piece)

    def _store(self, tokens: list[int], piece: Piece, start: int, ok: bool) -> None:
        if not ok:
            self._staging.release(piece)
            return
        try:
            future = self._cache.submit(self._save(tokens, piece, start))
        except LMCacheKitError as error:
            log.warning("the KV of %d tokens is not stored: %s", len(tokens) - start, error.detail)
            self._staging.release(piece)
            return
        future.add_done_callback(lambda _: self._staging.release(piece))

    async def _save(self, tokens: list[int], piece: Piece, start: int) -> None:
        try:
            result = await self._cache.store.save(tokens, self._staging.tensor(piece), start=start)
        except LMCacheKitError as error:
            log.warning("the KV of %d tokens is not stored: %s", len(tokens) - start, error.detail)
            self.tallies.add("store_errors", 1)
            return
        except Exception:  # a storage plugin may raise anything; the answer stands without being stored
            log.exception("the KV of %d tokens is not stored", len(tokens) - start)
            self.tallies.add("store_errors", 1)
            return
        for problem in result.errors:
            log.warning("some KV is not stored: %s", problem)
            self.tallies.add("store_errors", 1)
        self.tallies.add("store_requests", 1)
        self.tallies.add("stored_tokens", result.num_tokens)
        self.tallies.time("time_to_store", result.seconds)

    # --- the end -----------------------------------------------------------------------------------------------------

    def finished(self, request_id: str) -> dict[str, Any] | None:
        """The request is over, done or aborted; what its answer tells about the cache, None when it never ran."""
        self._forget(request_id)
        loading = self._loading.pop(request_id, None)
        if loading is not None:
            self._staging.release(loading[0])
        tracked = self._tracked.pop(request_id, None)
        return None if tracked is None else tracked.facts

    @property
    def is_waiting_for_ranks(self) -> bool:
        """Whether ranks have copies to report, for which vLLM must make steps."""
        return len(self._copies) > 0

    def stats(self) -> dict[str, Any]:
        """``InstanceRuntime.stats()`` of at most a second ago; a new dictionary each time."""
        return self._cache.stats

    async def _clear(self) -> None:
        for location in self._cache.store.locations():
            await self._cache.store.clear(location)

    def clear(self, *, timeout: float = 30.0) -> bool:
        """Drop everything that is stored, as after a change of weights; whether that worked."""
        try:
            self._cache.submit(self._clear()).result(timeout)
        except (LMCacheKitError, concurrent.futures.TimeoutError) as error:
            log.warning("the cache is not cleared: %s", error)
            return False
        return True

    def close(self) -> None:
        """Store what was copied, and close the cache; idempotent."""
        self._cache.close()
        self._staging.close()


def _is_plain(request: Request) -> bool:
    """Whether a request's KV depends on its tokens alone, and may be shared."""
    return (
        request.lora_request is None
        and not request.mm_features
        and getattr(request, "prompt_embeds", None) is None
        and getattr(request, "cache_salt", None) is None
    )


def _facts(loaded: Any, num_tokens: int, bytes_per_token: int) -> dict[str, Any]:
    """What our own server says under the key ``lmcache_kit`` of an answer, as far as it is known here."""
    locations: Counter[str] = Counter()
    codecs: Counter[str] = Counter()
    left = num_tokens
    for hit in reversed(loaded.hits):  # what vLLM had itself lies in front
        used = min(left, hit.num_tokens)
        locations[hit.location] += used
        codecs[hit.codec] += used > 0
        left -= used
    return {
        "cached_tokens_by_location": dict(+locations),
        "codecs": dict(+codecs),
        "load_seconds": loaded.seconds,
        "loaded_bytes": sum(hit.stored_bytes for hit in loaded.hits),
        "loaded_kv_bytes": loaded.num_tokens * bytes_per_token,
    }
