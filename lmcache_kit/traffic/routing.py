"""Routers: which instance a request goes to. They decide and do nothing else: the caller looks prefixes up for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from lmcache_kit.traffic.load import Load

__all__ = ["LeastLoaded", "PrefixAware", "RoundRobin", "Router"]


class Router(ABC):
    """Chooses among the instances that may take one more request; all are known by their place in the fleet's order."""

    wants_lookup: ClassVar[bool] = False
    """Whether it is to be told which prefixes the instances hold."""

    @abstractmethod
    def choose(self, load: Load, cached: Mapping[int, int]) -> int | None:
        """The instance for a request; None when none may take it.

        Args:
            load: requests in flight.
            cached: prompt tokens that the controller says an instance holds, where it holds any; empty for routers that
                do not want a lookup.
        """


class RoundRobin(Router):
    """In turn; an instance that may take none is passed over."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, load: Load, cached: Mapping[int, int]) -> int | None:
        chosen = load.next_from(self._next)
        if chosen is not None:
            self._next = (chosen + 1) % len(load.in_flight)
        return chosen


class LeastLoaded(Router):
    """The one with the fewest requests in flight; the first of equals."""

    def choose(self, load: Load, cached: Mapping[int, int]) -> int | None:
        return load.least()


class PrefixAware(Router):
    """The one with the highest ``cached tokens - load_tokens * requests in flight``.

    Of equal scores the one with fewer requests in flight, and of those the first.

    Args:
        load_tokens: how many cached tokens one request in flight outweighs, at least 0; 0 looks at prefixes alone.
    """

    wants_lookup = True

    def __init__(self, load_tokens: float) -> None:
        self._load_tokens = load_tokens

    def choose(self, load: Load, cached: Mapping[int, int]) -> int | None:
        # The least loaded one is the best of those that hold nothing, if it is one of them; otherwise it beats them.
        best = load.least()
        if best is None:
            return None
        in_flight, weight = load.in_flight, self._load_tokens
        top = (cached.get(best, 0) - weight * in_flight[best], -in_flight[best], -best)
        for place, tokens in cached.items():
            if load.may_take(place):
                score = (tokens - weight * in_flight[place], -in_flight[place], -place)
                if score > top:
                    top, best = score, place
        return best
