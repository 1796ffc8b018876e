"""The requests of two runs, matched by workload and place: whether they agree, and how their times compare.

The place of a request is its turn in its session, or without one its position in the workload. Positions are counted as
requests arrive, and which of two conversations goes on first depends on how long their last answers took.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from lmcache_kit.analysis.events import Event
from lmcache_kit.report.percentiles import PERCENTILES, percentile, summarize

__all__ = ["RequestMatcher", "place_of"]

_COMPARED = ("instance", "prompt_tokens", "completion_tokens", "cached_tokens", "failed")
_Key = tuple[str, str, int, int]
"""Workload, session, turn or position, and how many times that came before (0 unless a workload repeats itself)."""


def place_of(event: Event) -> tuple[str, int] | None:
    """Session and turn, or an empty session and the position; None for a request that has no number."""
    if event.session is not None and event.turn is not None:
        return event.session, event.turn
    return None if event.position is None else ("", event.position)


@dataclass(slots=True)
class _Tokens:
    prompt: int = 0
    cached: int = 0

    def add(self, event: Event) -> None:
        self.prompt += event.prompt_tokens or 0
        self.cached += event.cached_tokens or 0

    @property
    def hit_rate(self) -> float | None:
        return self.cached / self.prompt if self.prompt else None


@dataclass(slots=True)
class _Workload:
    """What the matched requests of one workload measured; times in seconds, in pairs."""

    matched: int = 0
    ttft: tuple[array[float], array[float]] = field(default_factory=lambda: (array("d"), array("d")))
    latency: tuple[array[float], array[float]] = field(default_factory=lambda: (array("d"), array("d")))
    tokens: tuple[_Tokens, _Tokens] = field(default_factory=lambda: (_Tokens(), _Tokens()))


class RequestMatcher:
    """Takes the request events of two runs, side by side; holds only those whose partner has not come yet.

    Args:
        with_times: whether to keep times, 32 bytes per request.
    """

    def __init__(self, *, with_times: bool) -> None:
        self._with_times = with_times
        self._waiting: tuple[dict[_Key, Event], dict[_Key, Event]] = ({}, {})
        self._repeats: tuple[Counter[tuple[str, str, int]], Counter[tuple[str, str, int]]] = (Counter(), Counter())
        self._unnumbered: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        self._order: dict[str, int] = {}
        self._workloads: dict[str, _Workload] = defaultdict(_Workload)
        self._first: tuple[tuple[int, int, int], _Key, Event | None, Event | None] | None = None
        self.seen = [0, 0]
        self.matched = 0
        self.different = 0

    def add(self, side: int, event: Event) -> None:
        """Take in a request of run 0 or 1."""
        self.seen[side] += 1
        key = self._key(side, event)
        partner = self._waiting[1 - side].pop(key, None)
        if partner is None:
            self._waiting[side][key] = event
            return
        a, b = (event, partner) if side == 0 else (partner, event)
        self.matched += 1
        if any(getattr(a, name) != getattr(b, name) for name in _COMPARED):
            self._differs(key, a, b)
        self._measure(key[0], a, b)

    def end(self) -> None:
        """No more requests come: those without a partner differ too."""
        for key, event in self._waiting[0].items():
            self._differs(key, event, None)
        for key, event in self._waiting[1].items():
            self._differs(key, None, event)

    def result(self) -> dict[str, Any]:
        """How many there are, how many differ, and the first that does."""
        first = None
        if self._first is not None:
            (_, position, _), (workload, *_), a, b = self._first
            first = {"workload": workload, "position": position, "a": _shown(a), "b": _shown(b)}
        return {
            "matched": self.matched,
            "different": self.different,
            "only_a": len(self._waiting[0]),
            "only_b": len(self._waiting[1]),
            "first_difference": first,
        }

    def times(self) -> list[dict[str, Any]]:
        """Per workload how far run B's times and hit rate are from run A's, and over all where there are several."""
        entries = [_errors(name, workload) for name, workload in self._workloads.items()]
        if len(entries) > 1:
            together = _Workload()
            for each in self._workloads.values():
                together.matched += each.matched
                for side in (0, 1):
                    together.ttft[side].extend(each.ttft[side])
                    together.latency[side].extend(each.latency[side])
                    together.tokens[side].prompt += each.tokens[side].prompt
                    together.tokens[side].cached += each.tokens[side].cached
            entries.append(_errors(None, together))
        return entries

    def _key(self, side: int, event: Event) -> _Key:
        workload = event.workload or ""
        self._order.setdefault(workload, len(self._order))
        place = place_of(event)
        if place is None:
            place = "", self._unnumbered[side][workload]
            self._unnumbered[side][workload] += 1
        repeats = self._repeats[side]
        count = repeats[workload, *place]
        repeats[workload, *place] = count + 1
        return workload, *place, count

    def _differs(self, key: _Key, a: Event | None, b: Event | None) -> None:
        self.different += 1
        workload, _, number, count = key
        positions = [event.position for event in (a, b) if event is not None and event.position is not None]
        place = (self._order[workload], positions[0] if positions else number, count)
        if self._first is None or place < self._first[0]:
            self._first = (place, key, a, b)

    def _measure(self, name: str, a: Event, b: Event) -> None:
        workload = self._workloads[name]
        workload.matched += 1
        for side, event in enumerate((a, b)):
            workload.tokens[side].add(event)
        if not self._with_times:
            return
        for pair, mine, its in (
            (workload.ttft, a.ttft_seconds, b.ttft_seconds),
            (workload.latency, a.seconds, b.seconds),
        ):
            if mine is not None and its is not None:
                pair[0].append(mine)
                pair[1].append(its)


def _errors(name: str | None, workload: _Workload) -> dict[str, Any]:
    rate_a, rate_b = (tokens.hit_rate for tokens in workload.tokens)
    return {
        "workload": name,
        "requests": workload.matched,
        "ttft": _time_errors(*workload.ttft),
        "latency": _time_errors(*workload.latency),
        "hit_rate": {
            "a": rate_a,
            "b": rate_b,
            "points": None if rate_a is None or rate_b is None else 100 * (rate_b - rate_a),
        },
    }


def _time_errors(a: array[float], b: array[float]) -> dict[str, Any] | None:
    """Errors of ``b`` against ``a``, in percent; None where nothing was measured in both runs.

    ``mape``: mean over the requests of ``|b - a| / a``. ``error_percentiles``: of the same values.
    ``percentile_error``: of each percentile of all times, how far b's is from a's, with its sign. Requests that took no
    time at all in ``a`` have no relative error and are counted as ``left_out``.
    """
    if not a:
        return None
    errors = [100 * abs(its - mine) / mine for mine, its in zip(a, b, strict=True) if mine > 0]
    measured, modelled = summarize(a), summarize(b)
    assert measured is not None, "not empty"
    assert modelled is not None, "as long as the other"
    return {
        "requests": len(a),
        "left_out": len(a) - len(errors),
        "mape": math.fsum(errors) / len(errors) if errors else None,
        "error_percentiles": {f"p{each}": percentile(errors, each) for each in PERCENTILES} if errors else None,
        "percentile_error": {
            key: 100 * (modelled[key] - measured[key]) / measured[key] if measured[key] > 0 else None
            for key in ("mean", *(f"p{each}" for each in PERCENTILES))
        },
    }


def _shown(event: Event | None) -> dict[str, Any] | None:
    return None if event is None else {"time": event.time, **{name: getattr(event, name) for name in _COMPARED}}
