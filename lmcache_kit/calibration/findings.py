"""What a calibration found: costs with where they come from, and what stays as it was, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from lmcache_kit.errors import ConfigError
from lmcache_kit.sim.costs import CodecCosts, Costs, TierCosts, load_costs

__all__ = ["Figure", "Findings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One cost.

    Args:
        path: its keys in a file of costs.
        value: in the unit of docs/reference/costs.md.
        samples: how many measurements it comes from; 0 for one that stays as it was.
        why: for one that stays, what is missing.
    """

    path: tuple[str, ...]
    value: float | bool | None
    samples: int
    why: str | None = None

    @property
    def name(self) -> str:
        return ".".join(self.path)


class Findings:
    """Collects figures; what is not found stays as ``before`` has it.

    Args:
        before: the costs that the scenario names, or none.
        usual: location that the storage plugin of a tier calls its own, by the tier's location.
    """

    def __init__(self, before: Costs, usual: Mapping[str, str] | None = None) -> None:
        self.before = before
        self._usual = usual or {}
        self.figures: list[Figure] = []
        self.notes: list[str] = []
        self._costs: dict[str, Any] = msgspec.to_builtins(before)

    def found(self, *path: str, value: float, samples: int) -> None:
        """A cost was measured."""
        rounded = rounded_to(value, 6)
        here = self._costs
        for depth, key in enumerate(path[:-1]):
            # Whole, because an entry that a file has stands for all of the method, tier or engine.
            here = here.setdefault(key, self._entry(path[0], key) if depth == 1 else {})
        here[path[-1]] = rounded
        self.figures.append(Figure(path=path, value=rounded, samples=samples))

    def _entry(self, kind: str, name: str) -> dict[str, Any]:
        if kind == "codecs":
            return dict(msgspec.to_builtins(self.codec(name)))
        if kind == "tiers":
            return dict(msgspec.to_builtins(self.tier(name)))
        return {}

    def now(self) -> Costs:
        """All that is known until now."""
        return load_costs(self.costs(), Path())

    def codec(self, method: str) -> CodecCosts:
        """What is known of a method until now, or the least that a codec can be."""
        try:
            return self.now().codec(method)
        except ConfigError:
            return CodecCosts()

    def tier(self, location: str) -> TierCosts:
        """What is known of a location until now, or the least that a tier can be."""
        try:
            return self.now().tier(location, self._usual.get(location, location))
        except ConfigError:
            return TierCosts()

    def kept(self, *path: str, value: float | bool | None, why: str) -> None:
        """A cost could not be measured."""
        self.figures.append(Figure(path=path, value=value, samples=0, why=why))

    def note(self, text: str) -> None:
        """Something to know about all of it."""
        self.notes.append(text)

    def costs(self) -> dict[str, Any]:
        """All of it in the shape of a file of costs; keys that say what they say anyway are left out."""
        usual = msgspec.to_builtins(Costs())
        return {key: value for key, value in self._costs.items() if value != usual[key]}


def rounded_to(value: float, digits: int) -> float:
    """To so many significant digits: what follows is noise, and makes files hard to read."""
    if value == 0.0 or not math.isfinite(value):
        return value
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))
