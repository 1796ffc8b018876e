"""Broken placement policies."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import Any

from mutants.mutant import Mutant

from lmcache_kit.builtin.placement.broadcast import Broadcast
from lmcache_kit.builtin.placement.demote import Demote
from lmcache_kit.builtin.placement.write_back import WriteBack
from lmcache_kit.contracts.placement import PlacementPolicy, Promotion, TierView
from lmcache_kit.contracts.records import Options, PlacementPlugin

__all__ = ["MUTANTS", "SOUND"]


class StoresInAMissingTier(Broadcast):
    def on_store(self, tiers: Sequence[TierView], nbytes: int) -> Sequence[int]:
        return range(len(tiers) + 1)


class CountsFromOne(Demote):
    def on_store(self, tiers: Sequence[TierView], nbytes: int) -> Sequence[int]:
        return [index + 1 for index in super().on_store(tiers, nbytes)]


class StoresByLocation(Demote):
    """Answers with names of tiers."""

    def on_store(self, tiers: Sequence[TierView], nbytes: int) -> Sequence[int]:
        return [tiers[index].location for index in super().on_store(tiers, nbytes)]  # type: ignore[misc]


class TakesTurns(Demote):
    """Spreads objects over the tiers, one after the other."""

    def __init__(self) -> None:
        self._turn = 0

    def on_store(self, tiers: Sequence[TierView], nbytes: int) -> Sequence[int]:
        self._turn += 1
        return (self._turn % len(tiers),)


class PromotesEverySecondHit(WriteBack):
    def __init__(self) -> None:
        self._hits = 0

    def on_hit(self, tiers: Sequence[TierView], tier: int, nbytes: int) -> Promotion | None:
        self._hits += 1
        return super().on_hit(tiers, tier, nbytes) if self._hits % 2 else None


class DrawsLots(Demote):
    def on_evict(self, tiers: Sequence[TierView], tier: int, held: Sequence[int], nbytes: int) -> int | None:
        return super().on_evict(tiers, tier, held, nbytes) if random.SystemRandom().random() < 0.5 else None


class PromotesDownwards(WriteBack):
    def on_hit(self, tiers: Sequence[TierView], tier: int, nbytes: int) -> Promotion | None:
        return Promotion(target=tier + 1, keep_source=True) if tier + 1 < len(tiers) else None


class PromotesToItself(WriteBack):
    def on_hit(self, tiers: Sequence[TierView], tier: int, nbytes: int) -> Promotion | None:
        return Promotion(target=tier, keep_source=False)


class CopiesToTheLastOfNone(WriteBack):
    """Index -1: the last tier to Python, no tier to the contract."""

    def on_idle(self, tiers: Sequence[TierView], held: Sequence[int], nbytes: int) -> Sequence[int]:
        return (-1,)


class DemotesOutOfTheWorld(Demote):
    def on_evict(self, tiers: Sequence[TierView], tier: int, held: Sequence[int], nbytes: int) -> int | None:
        return tier + 1


class NeedsTwoTiers(WriteBack):
    def on_store(self, tiers: Sequence[TierView], nbytes: int) -> Sequence[int]:
        return (0,) if tiers[0].used_bytes <= tiers[1].used_bytes else (1,)


class NeedsCapacities(Demote):
    def on_store(self, tiers: Sequence[TierView], nbytes: int) -> Sequence[int]:
        roomy = max(range(len(tiers)), key=lambda index: tiers[index].capacity_bytes - tiers[index].used_bytes)  # type: ignore[operator]
        return (roomy,)


class DividesByTheCapacity(WriteBack):
    """An empty tier of 0 bytes is one that exists."""

    def on_idle(self, tiers: Sequence[TierView], held: Sequence[int], nbytes: int) -> Sequence[int]:
        fill = [0.0 if tier.capacity_bytes is None else tier.used_bytes / tier.capacity_bytes for tier in tiers]
        return [index for index, part in enumerate(fill) if part < 0.5 and index not in held]


class ChangesItsArguments(Demote):
    def on_evict(self, tiers: Sequence[TierView], tier: int, held: Sequence[int], nbytes: int) -> int | None:
        found = super().on_evict(tiers, tier, held, nbytes)
        if isinstance(held, list):
            held.append(tier)
        return found


class AnswersNothing(Broadcast):
    """``None`` is not an empty sequence."""

    def on_store(self, tiers: Sequence[TierView], nbytes: int) -> Sequence[int]:
        return super().on_store(tiers, nbytes) or None  # type: ignore[return-value]


class StoresNothing(Broadcast):
    def on_store(self, tiers: Sequence[TierView], nbytes: int) -> Sequence[int]:
        return ()


class PromotesToAnIndex(Broadcast):
    """Answers with a number in place of a Promotion."""

    def on_hit(self, tiers: Sequence[TierView], tier: int, nbytes: int) -> Promotion | None:
        return 0 if tier else None  # type: ignore[return-value]


def _make(made: Any, options: Options) -> PlacementPolicy:
    policy: PlacementPolicy = made()
    return policy


def _mutant(name: str, made: type[PlacementPolicy], wrong: str, *caught_by: str, errors: str = "") -> Mutant:
    record = PlacementPlugin(name=name, summary=wrong, factory=functools.partial(_make, made))
    return Mutant(record=record, wrong=wrong, caught_by=caught_by, errors=tuple(errors.split()))


SOUND: tuple[Mutant, ...] = (_mutant("sound_write_back", WriteBack, "nothing"),)

_STORE = "test_a_store_goes_to_tiers_that_exist_each_once"
_IDLE = "test_copies_made_later_go_to_tiers_that_exist_each_once"
_HIT = "test_a_hit_promotes_upwards_or_not_at_all"
_EVICT = "test_an_eviction_names_a_tier_that_exists_or_none"
_SAME = "test_the_same_question_has_the_same_answer_whatever_was_asked_before"
_ROOM = "test_something_is_stored_where_every_tier_has_room"
_LEFT = "test_arguments_are_left_as_they_are_and_may_be_any_sequence"

MUTANTS: tuple[Mutant, ...] = (
    _mutant("stores_in_a_missing_tier", StoresInAMissingTier, "on_store names one tier too many", _STORE),
    _mutant("counts_from_one", CountsFromOne, "on_store names the tier below, also below the last", _STORE),
    _mutant("stores_by_location", StoresByLocation, "on_store answers with names in place of indices", _STORE),
    _mutant("takes_turns", TakesTurns, "on_store answers in turns", _SAME),
    _mutant("promotes_every_second_hit", PromotesEverySecondHit, "on_hit counts", _SAME),
    _mutant("draws_lots", DrawsLots, "on_evict throws a coin", _SAME),
    _mutant("promotes_downwards", PromotesDownwards, "on_hit names a slower tier", _HIT),
    _mutant("promotes_to_itself", PromotesToItself, "on_hit names the tier that was hit", _HIT),
    _mutant("copies_to_the_last_of_none", CopiesToTheLastOfNone, "on_idle names tier -1", _IDLE),
    _mutant("demotes_out_of_the_world", DemotesOutOfTheWorld, "on_evict names a tier below the last", _EVICT),
    _mutant("needs_two_tiers", NeedsTwoTiers, "on_store fails with a single tier", _STORE, errors="IndexError"),
    _mutant("needs_capacities", NeedsCapacities, "on_store fails with an unbounded tier", _STORE, errors="TypeError"),
    _mutant(
        "divides_by_the_capacity",
        DividesByTheCapacity,
        "on_idle fails with a tier of 0 bytes",
        _IDLE,
        errors="ZeroDivisionError",
    ),
    _mutant("stores_nothing", StoresNothing, "on_store names no tier, ever", _ROOM),
    _mutant("changes_its_arguments", ChangesItsArguments, "on_evict changes the list of holders", _LEFT),
    _mutant(
        "answers_nothing", AnswersNothing, "on_store answers None where it wants no tier", _STORE, errors="TypeError"
    ),
    _mutant("promotes_to_an_index", PromotesToAnIndex, "on_hit answers a number", _HIT),
)
