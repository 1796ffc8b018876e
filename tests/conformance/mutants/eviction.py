"""Broken eviction policies."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
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


class LooksThroughAList(EvictionPolicy):
    """Right, but every call compares with every key."""

    def __init__(self) -> None:
        self._keys: list[str] = []

    def admit(self, key: str, nbytes: int) -> None:
        if key not in self._keys:
            self._keys.append(key)

    def touch(self, key: str) -> None:
        if key in self._keys:
            self._keys.remove(key)
            self._keys.append(key)

    def remove(self, key: str, *, evicted: bool) -> None:
        if key in self._keys:
            self._keys.remove(key)

    def victims(self) -> Iterator[str]:
        return iter(list(self._keys))


class SharesItsKeys(LRU):
    """One table for all tiers."""

    _all: Any = LRU()._keys

    def __init__(self) -> None:
        super().__init__()
        self._keys = self._all


def _make(made: Any, options: Options, capacity_bytes: int | None) -> EvictionPolicy:
    policy: EvictionPolicy = made(capacity_bytes) if made in (ARC, NeedsACapacity, DropsWhatIsTooMuch) else made()
    return policy


def _mutant(name: str, made: type[EvictionPolicy], wrong: str, *caught_by: str) -> Mutant:
    record = EvictionPlugin(name=name, summary=wrong, factory=functools.partial(_make, made))
    return Mutant(record=record, wrong=wrong, caught_by=caught_by)


SOUND: tuple[Mutant, ...] = (_mutant("sound_lru", LRU, "nothing"), _mutant("sound_arc", ARC, "nothing"))

MUTANTS: tuple[Mutant, ...] = (
    _mutant("yields_a_removed_key", YieldsARemovedKey, "a deleted key stays a victim"),
    _mutant("yields_an_evicted_key", YieldsAnEvictedKey, "an evicted key stays a victim"),
    _mutant("forgets_the_newest", ForgetsTheNewest, "victims leaves the last key out"),
    _mutant("forgets_when_touched", ForgetsWhenTouched, "a key that is read is no victim any more"),
    _mutant("repeats_a_touched_key", RepeatsATouchedKey, "a key that was read is a victim twice"),
    _mutant("rewriting_adds_a_key", RewritingAddsAKey, "a key that was rewritten is a victim twice"),
    _mutant("touch_admits", TouchAdmits, "a key that is not in the tier becomes a victim by being read"),
    _mutant("unknown_keys_raise", UnknownKeysRaise, "removing a key that it does not know raises KeyError"),
    _mutant("order_by_chance", OrderByChance, "the same history gives another order each time"),
    _mutant("asking_changes_the_order", AskingChangesTheOrder, "victims that were looked at move to the end"),
    _mutant("asking_forgets", AskingForgets, "victims that were looked at are forgotten"),
    _mutant("forgets_the_readmitted", ForgetsTheReadmitted, "a key that comes back after its eviction is unknown"),
    _mutant("ignores_empty_objects", IgnoresEmptyObjects, "keys of 0 bytes are no victims"),
    _mutant("needs_a_capacity", NeedsACapacity, "cannot be made for an unbounded tier"),
    _mutant("drops_what_is_too_much", DropsWhatIsTooMuch, "forgets keys that the tier still holds"),
    _mutant("looks_through_a_list", LooksThroughAList, "takes time that grows with the square of the keys"),
    _mutant("shares_its_keys", SharesItsKeys, "two tiers have one table"),
)
