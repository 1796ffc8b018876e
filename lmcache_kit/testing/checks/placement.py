"""Placement policies: pure, and their answers name tiers that exist."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from lmcache_kit.contracts.placement import PlacementPolicy, Promotion, TierView
from lmcache_kit.contracts.records import Options, PlacementPlugin
from lmcache_kit.testing.checks.result import CheckResult, require, run_check

__all__ = ["run"]


def run(record: PlacementPlugin, options: Options) -> list[CheckResult]:
    policy = record.factory(options)
    if not isinstance(policy, PlacementPolicy):
        return [CheckResult("made", "failed", "the factory did not make a PlacementPolicy")]
    other = record.factory(options)
    return [
        run_check("stores", lambda: _stores(policy, other)),
        run_check("copies when idle", lambda: _idle(policy, other)),
        run_check("hits", lambda: _hits(policy, other)),
        run_check("evictions", lambda: _evictions(policy, other)),
    ]


def _fleets() -> Iterator[tuple[TierView, ...]]:
    """One to three tiers, bounded or not, writable or not."""
    kinds = [(100, True), (None, True), (10, True), (100, False)]
    for count in (1, 2, 3):
        for choice in itertools.product(kinds, repeat=count):
            yield tuple(
                TierView(location=f"tier{index}", capacity_bytes=capacity, used_bytes=0, writable=writable)
                for index, (capacity, writable) in enumerate(choice)
            )


def _held(count: int) -> Iterator[tuple[int, ...]]:
    for length in range(count + 1):
        yield from itertools.combinations(range(count), length)


def _in_range(answer: object, tiers: tuple[TierView, ...], what: str) -> None:
    require(isinstance(answer, int) and 0 <= answer < len(tiers), f"{what} names tier {answer} of {len(tiers)}")


def _stores(policy: PlacementPolicy, other: PlacementPolicy) -> str:
    for tiers in _fleets():
        answer = list(policy.on_store(tiers, 50))
        for index in answer:
            _in_range(index, tiers, "on_store")
        require(len(set(answer)) == len(answer), "on_store names a tier twice")
        require(answer == list(policy.on_store(tiers, 50)) == list(other.on_store(tiers, 50)), "on_store is not pure")
    return ""


def _idle(policy: PlacementPolicy, other: PlacementPolicy) -> str:
    copies = 0
    for tiers in _fleets():
        for held in _held(len(tiers)):
            answer = list(policy.on_idle(tiers, held, 50))
            for index in answer:
                _in_range(index, tiers, "on_idle")
            require(answer == list(policy.on_idle(tiers, held, 50)), "on_idle is not pure")
            require(answer == list(other.on_idle(tiers, held, 50)), "on_idle is not pure")
            copies += len(answer)
    return "" if copies else "never"


def _hits(policy: PlacementPolicy, other: PlacementPolicy) -> str:
    for tiers in _fleets():
        for tier in range(len(tiers)):
            answer = policy.on_hit(tiers, tier, 50)
            require(answer is None or isinstance(answer, Promotion), "on_hit answers no Promotion")
            if answer is not None:
                _in_range(answer.target, tiers, "on_hit")
                require(answer.target != tier, "on_hit promotes to the tier that was hit")
            require(answer == policy.on_hit(tiers, tier, 50) == other.on_hit(tiers, tier, 50), "on_hit is not pure")
    return ""


def _evictions(policy: PlacementPolicy, other: PlacementPolicy) -> str:
    for tiers in _fleets():
        for tier in range(len(tiers)):
            for held in _held(len(tiers)):
                if tier in held:
                    continue
                answer = policy.on_evict(tiers, tier, held, 50)
                if answer is not None:
                    _in_range(answer, tiers, "on_evict")
                again = policy.on_evict(tiers, tier, held, 50), other.on_evict(tiers, tier, held, 50)
                require(again == (answer, answer), "on_evict is not pure")
    return ""
