"""How much of a trace a cache of a given size would hit: ids through an eviction policy, without fleet or time.

A request hits the leading run of its ids that are in the cache when it comes. Then each of its ids is used, in order:
one that is there is read, one that is not is stored, after what the policy gives up first has made room. That is the
order in which LMCache's cache simulator works, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable
from typing import Any

from lmcache_kit.contracts.eviction import EvictionPolicy
from lmcache_kit.contracts.trace import TraceRecord

__all__ = ["Reuse", "Tally", "replay"]


@dataclasses.dataclass(slots=True)
class Tally:
    """What was hit, of some of the requests.

    Args:
        requests: how many they were.
        blocks: their ids.
        hit_blocks: ids hit.
        tokens: prompt tokens.
        hit_tokens: prompt tokens hit, those of a partial last block among them.
        hit_full_tokens: those of full blocks alone.
    """

    requests: int = 0
    blocks: int = 0
    hit_blocks: int = 0
    tokens: int = 0
    hit_tokens: int = 0
    hit_full_tokens: int = 0

    def count(self, record: TraceRecord, blocks: int, hits: int, block_size: int) -> None:
        """Add a request of ``blocks`` ids that hit the first ``hits`` of them."""
        full = min(hits, len(record.block_ids)) * block_size
        self.requests += 1
        self.blocks += blocks
        self.hit_blocks += hits
        self.tokens += record.input_tokens
        self.hit_tokens += record.input_tokens if hits > len(record.block_ids) else full
        self.hit_full_tokens += full

    @property
    def block_hit_rate(self) -> float | None:
        """Ids hit of all ids; None without any."""
        return self.hit_blocks / self.blocks if self.blocks else None

    @property
    def token_hit_rate(self) -> float | None:
        """Tokens hit of all prompt tokens, a partial last block that has an id among them; None without any id."""
        return self.hit_tokens / self.tokens if self.blocks else None

    @property
    def lmcache_token_hit_rate(self) -> float | None:
        """Tokens of full blocks hit of all prompt tokens, as LMCache defines it: tail tokens always miss."""
        return self.hit_full_tokens / self.tokens if self.blocks else None

    def rates(self) -> dict[str, float | None]:
        """The three rates by name."""
        return {
            "block_hit_rate": self.block_hit_rate,
            "token_hit_rate": self.token_hit_rate,
            "lmcache_token_hit_rate": self.lmcache_token_hit_rate,
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """What a replay found.

    Args:
        plain: all requests.
        first: the same, retries left out: what a request hits when it comes back was stored by itself.
        retries: requests that are not in ``first``.
        retries_by: ``request_id`` where the trace names its requests; else ``prompt``: a request with the very prompt
            of an earlier one in its session is taken for a retry.
        distinct: different ids.
        evictions: ids that had to leave.
        resident: ids in the cache at the end.
    """

    plain: Tally
    first: Tally
    retries: int
    retries_by: str
    distinct: int
    evictions: int
    resident: int

    def facts(self) -> dict[str, Any]:
        """As a report shows it."""
        return {
            **self.plain.rates(),
            "first_admission": {
                "requests": self.first.requests,
                "retries": self.retries,
                "retries_by": self.retries_by,
                **self.first.rates(),
            },
            "evictions": self.evictions,
            "resident_blocks": self.resident,
        }


def replay(
    records: Iterable[TraceRecord],
    block_size: int,
    *,
    policy: EvictionPolicy | None = None,
    capacity: int | None = None,
    partial_blocks: bool = True,
) -> Reuse:
    """Replay the ids of a trace.

    Args:
        records: in order, with ids of one scope, as ``load_trace`` gives them.
        block_size: tokens of an id.
        policy: decides what leaves; not needed without a capacity. It was made for ``capacity`` objects of one byte.
        capacity: ids that the cache holds, at least 1; None for all.
        partial_blocks: whether ids of partial last blocks are cached and counted.
    """
    if capacity is not None and (policy is None or capacity < 1):
        raise ValueError("a capacity is at least 1 and needs a policy")
    cache = _Unbounded() if capacity is None or policy is None else _Bounded(policy, capacity)
    plain, first = Tally(), Tally()
    seen: set[Hashable] = set()
    distinct: set[int] = set()
    named = False
    for record in records:
        ids = record.block_ids
        if partial_blocks and record.tail_id is not None:
            ids = (*ids, record.tail_id)
        hits = cache.use(ids)
        distinct.update(ids)
        plain.count(record, len(ids), hits, block_size)
        named = named or record.request_id is not None
        identity = _identity(record)
        if identity not in seen:
            seen.add(identity)
            first.count(record, len(ids), hits, block_size)
    return Reuse(
        plain=plain,
        first=first,
        retries=plain.requests - first.requests,
        retries_by="request_id" if named else "prompt",
        distinct=len(distinct),
        evictions=cache.evictions,
        resident=cache.resident,
    )


def _identity(record: TraceRecord) -> Hashable:
    """What a request has in common with its retries, and with nothing else as far as the trace tells."""
    if record.request_id is not None:
        return record.session, record.request_id
    # Chained ids: the last one stands for all. A tail without an id is nobody else's, so nothing is known to repeat.
    last = record.tail_id if record.tail_id is not None else record.block_ids[-1:]
    if record.tail_tokens and record.tail_id is None:
        return object()
    return record.session, record.input_tokens, last


class _Unbounded:
    """Everything stays."""

    def __init__(self) -> None:
        self._ids: set[int] = set()
        self.evictions = 0

    @property
    def resident(self) -> int:
        return len(self._ids)

    def use(self, ids: tuple[int, ...]) -> int:
        """Leading ids that are there; all are afterwards."""
        held = self._ids
        hits = next((place for place, each in enumerate(ids) if each not in held), len(ids))
        held.update(ids)
        return hits


class _Bounded:
    """At most ``capacity`` ids; the policy says which leave."""

    def __init__(self, policy: EvictionPolicy, capacity: int) -> None:
        self._policy = policy
        self._capacity = capacity
        # Ids by the keys under which policies know objects.
        self._held: dict[int, str] = {}
        self._ids: dict[str, int] = {}
        self.evictions = 0

    @property
    def resident(self) -> int:
        return len(self._held)

    def use(self, ids: tuple[int, ...]) -> int:
        """Leading ids that are there; afterwards those are that there was room for."""
        held, policy, capacity = self._held, self._policy, self._capacity
        hits = next((place for place, each in enumerate(ids) if each not in held), len(ids))
        for each in ids:
            key = held.get(each)
            if key is not None:
                policy.touch(key)
                continue
            if len(held) >= capacity:
                self._evict()
            key = held[each] = str(each)
            self._ids[key] = each
            policy.admit(key, 1)
        return hits

    def _evict(self) -> None:
        victim = next(self._policy.victims())
        del self._held[self._ids.pop(victim)]
        self._policy.remove(victim, evicted=True)
        self.evictions += 1
