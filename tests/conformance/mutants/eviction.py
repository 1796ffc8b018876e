"""Broken eviction policies."""

from __future__ import annotations

import functools
import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from mutants.mutant import Mutant

from lmcache_kit.builtin.eviction.arc import ARC
from lmcache_kit.builtin.eviction.lru import LRU
from lmcache_kit.contracts.eviction import EvictionPolicy
from lmcache_kit.contracts.records import EvictionPlugin, Options

__all__ = ["MUTANTS", "SOUND"]


class YieldsARemovedKey(LRU):
    """Cleans up only after evictions, not after deletions."""

    def remove(self, key: str, *, evicted: bool) -> None:
        if evicted:
            super().remove(key, evicted=evicted)


class YieldsAnEvictedKey(LRU):
    """The other way round."""

    def remove(self, key: str, *, evicted: bool) -> None:
        if not evicted:
            super().remove(key, evicted=evicted)


class ForgetsTheNewest(LRU):
    """Protects the key that was used last, for ever."""

    def victims(self) -> Iterator[str]:
        keys = list(self._keys)
        return iter(keys[:-1])


class ForgetsWhenTouched(LRU):
    def touch(self, key: str) -> None:
        self._keys.pop(key, None)


class DropsTheBackOfASavedPrompt(LRU):
    def keep_front(self, keys: Sequence[str]) -> None:
        for key in keys[1:]:
            self._keys.pop(key, None)


class HoldsWhatAPromptConsistsOf(LRU):
    """Without asking whether the tier has it."""

    def keep_front(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._keys[key] = None


class RepeatsATouchedKey(EvictionPolicy):
    """A log of uses."""

    def __init__(self) -> None:
        self._uses: list[str] = []

    def admit(self, key: str, nbytes: int) -> None:
        if key not in self._uses:
            self._uses.append(key)

    def touch(self, key: str) -> None:
        if key in self._uses:
            self._uses.append(key)

    def remove(self, key: str, *, evicted: bool) -> None:
        self._uses = [each for each in self._uses if each != key]

    def victims(self) -> Iterator[str]:
        return iter(self._uses)


class RewritingAddsAKey(RepeatsATouchedKey):
    def admit(self, key: str, nbytes: int) -> None:
        self._uses.append(key)

    def touch(self, key: str) -> None:
        if key in self._uses:
            self._uses.remove(key)
            self._uses.append(key)


class TouchAdmits(LRU):
    """A key that was never admitted enters by being read."""

    def touch(self, key: str) -> None:
        self._keys[key] = None
        super().touch(key)


class UnknownKeysRaise(LRU):
    def remove(self, key: str, *, evicted: bool) -> None:
        del self._keys[key]


class OrderByChance(LRU):
    def victims(self) -> Iterator[str]:
        keys = list(self._keys)
        random.SystemRandom().shuffle(keys)
        return iter(keys)


class AskingChangesTheOrder(LRU):
    """Moves what it offers to the end, so that asking twice gives two answers."""

    def victims(self) -> Iterator[str]:
        for key in list(self._keys):
            self._keys.move_to_end(key)
            yield key


class AskingForgets(LRU):
    """Takes out what it offers: a tier that stops early, or skips a pinned object, loses keys."""

    def victims(self) -> Iterator[str]:
        while self._keys:
            yield self._keys.popitem(last=False)[0]


class ForgetsTheReadmitted(LRU):
    """A ghost list that a key never leaves."""

    def __init__(self) -> None:
        super().__init__()
        self._ghosts: set[str] = set()

    def remove(self, key: str, *, evicted: bool) -> None:
        super().remove(key, evicted=evicted)
        if evicted:
            self._ghosts.add(key)

    def admit(self, key: str, nbytes: int) -> None:
        if key not in self._ghosts:
            super().admit(key, nbytes)


class IgnoresEmptyObjects(LRU):
    def admit(self, key: str, nbytes: int) -> None:
        if nbytes:
            super().admit(key, nbytes)


class NeedsACapacity(ARC):
    def __init__(self, capacity_bytes: int | None) -> None:
        super().__init__(capacity_bytes)
        self._target = capacity_bytes / 2  # type: ignore[operator]


class DropsWhatIsTooMuch(LRU):
    """Keeps its table small by itself, when the objects are more than the capacity."""

    def __init__(self, capacity_bytes: int | None) -> None:
        super().__init__()
        self._left = 2**62 if capacity_bytes is None else capacity_bytes

    def admit(self, key: str, nbytes: int) -> None:
        super().admit(key, nbytes)
        self._left -= nbytes
        while self._left < 0 and len(self._keys) > 1:
            self._keys.popitem(last=False)
            self._left += nbytes


class LooksThroughAll(LRU):
    """Right, but a removal builds the whole table anew."""

    def remove(self, key: str, *, evicted: bool) -> None:
        left = OrderedDict[str, None]()
        for each in self._keys:
            if each != key:
                left[each] = None
        self._keys = left


class WalksAtEverySave(LRU):
    """Right, but looks for a prompt's keys in the whole table."""

    def keep_front(self, keys: Sequence[str]) -> None:
        found = set()
        for each in self._keys:
            found |= {each} & set(keys)
        super().keep_front([key for key in keys if key in found])


class CopiesTheTier(LRU):
    """Right, but makes a list of all keys for the one that is evicted."""

    def victims(self) -> Iterator[str]:
        return iter(list(self._keys))


class NeverForgets(LRU):
    """Keeps a note of every key that it ever saw."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, int] = {}

    def admit(self, key: str, nbytes: int) -> None:
        super().admit(key, nbytes)
        self._seen[key] = nbytes


class OrderOfHashes(EvictionPolicy):
    """A set has an order too: another one in every process."""

    def __init__(self) -> None:
        self._keys: set[str] = set()

    def admit(self, key: str, nbytes: int) -> None:
        self._keys.add(key)

    def touch(self, key: str) -> None:
        pass

    def remove(self, key: str, *, evicted: bool) -> None:
        self._keys.discard(key)

    def victims(self) -> Iterator[str]:
        return iter(self._keys)


class SharesItsKeys(LRU):
    """One table for all tiers."""

    _all: Any = LRU()._keys

    def __init__(self) -> None:
        super().__init__()
        self._keys = self._all


def _make(made: Any, options: Options, capacity_bytes: int | None) -> EvictionPolicy:
    policy: EvictionPolicy = made(capacity_bytes) if made in (ARC, NeedsACapacity, DropsWhatIsTooMuch) else made()
    return policy


def _mutant(name: str, made: type[EvictionPolicy], wrong: str, *caught_by: str, errors: str = "") -> Mutant:
    record = EvictionPlugin(name=name, summary=wrong, factory=functools.partial(_make, made))
    return Mutant(record=record, wrong=wrong, caught_by=caught_by, errors=tuple(errors.split()))


SOUND: tuple[Mutant, ...] = (_mutant("sound_lru", LRU, "nothing"), _mutant("sound_arc", ARC, "nothing"))

_KEYS = "test_victims_are_exactly_the_keys_in_the_tier_each_once"
_REMOVED = "test_a_removed_key_is_no_victim_until_it_comes_back"
_REWRITTEN = "test_a_rewritten_key_stays_one_key"
_UNKNOWN = "test_keys_that_are_not_in_the_tier_are_ignored"
_ASKING = "test_asking_for_victims_changes_nothing"
_SAME = "test_the_same_calls_give_the_same_order"
_HASHES = "test_the_order_does_not_depend_on_how_keys_hash"
_NEW = "test_a_new_policy_has_no_victims"
_WORK = "test_evicting_a_large_tier_one_by_one_takes_work_in_proportion"
_COPYING = "test_the_first_victims_come_without_copying_the_tier"
_KEPT = "test_nothing_is_kept_of_deleted_keys"

MUTANTS: tuple[Mutant, ...] = (
    _mutant("yields_a_removed_key", YieldsARemovedKey, "a deleted key stays a victim", _KEYS, _REMOVED),
    _mutant("yields_an_evicted_key", YieldsAnEvictedKey, "an evicted key stays a victim", _KEYS, _REMOVED),
    _mutant("forgets_the_newest", ForgetsTheNewest, "victims leaves the last key out", _KEYS),
    _mutant("forgets_when_touched", ForgetsWhenTouched, "a key that is read is no victim any more", _KEYS),
    _mutant("repeats_a_touched_key", RepeatsATouchedKey, "a key that was read is a victim twice", _KEYS),
    _mutant("rewriting_adds_a_key", RewritingAddsAKey, "a key that was rewritten is a victim twice", _REWRITTEN),
    _mutant("drops_the_back_of_a_saved_prompt", DropsTheBackOfASavedPrompt, "a save makes keys no victims", _KEYS),
    _mutant("holds_what_a_prompt_consists_of", HoldsWhatAPromptConsistsOf, "a save makes other keys victims", _KEYS),
    _mutant("walks_at_every_save", WalksAtEverySave, "a save takes work in proportion to the tier", _WORK),
    _mutant("touch_admits", TouchAdmits, "a key that is not in the tier becomes a victim by being read", _KEYS),
    _mutant(
        "unknown_keys_raise", UnknownKeysRaise, "removing a key it does not know fails", _UNKNOWN, errors="KeyError"
    ),
    _mutant("order_by_chance", OrderByChance, "the same history gives another order each time", _SAME),
    _mutant("order_of_hashes", OrderOfHashes, "the order is another one in every process", _HASHES),
    _mutant("asking_changes_the_order", AskingChangesTheOrder, "victims that were looked at move to the end", _ASKING),
    _mutant("asking_forgets", AskingForgets, "victims that were looked at are forgotten", _ASKING),
    _mutant("forgets_the_readmitted", ForgetsTheReadmitted, "a key that comes back is unknown", _REMOVED),
    _mutant("ignores_empty_objects", IgnoresEmptyObjects, "keys of 0 bytes are no victims", _KEYS),
    _mutant("needs_a_capacity", NeedsACapacity, "cannot be made for an unbounded tier", _NEW, errors="TypeError"),
    _mutant("drops_what_is_too_much", DropsWhatIsTooMuch, "forgets keys that the tier still holds", _KEYS),
    _mutant("looks_through_all", LooksThroughAll, "its work grows with the square of the keys", _WORK),
    _mutant("copies_the_tier", CopiesTheTier, "copies all keys for the first victim", _COPYING),
    _mutant("never_forgets", NeverForgets, "its memory grows with every key that it ever saw", _KEPT),
    _mutant("shares_its_keys", SharesItsKeys, "two tiers have one table", _KEYS),
)
