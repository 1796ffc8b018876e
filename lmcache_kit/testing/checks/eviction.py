"""Eviction policies: victims are exactly the keys that are in the tier."""

from __future__ import annotations

import random

from lmcache_kit.contracts.eviction import EvictionPolicy
from lmcache_kit.contracts.records import EvictionPlugin, Options
from lmcache_kit.testing.checks.result import CheckResult, require, run_check

__all__ = ["run"]

_CAPACITY = 1000


def run(record: EvictionPlugin, options: Options) -> list[CheckResult]:
    return [
        run_check("bounded tier", lambda: _churn(record.factory(options, _CAPACITY), _CAPACITY)),
        run_check("unbounded tier", lambda: _churn(record.factory(options, None), None)),
        run_check("rewriting changes no membership", lambda: _rewrite(record.factory(options, _CAPACITY))),
    ]


def _churn(policy: EvictionPolicy, capacity: int | None) -> str:
    require(isinstance(policy, EvictionPolicy), "the factory did not make an EvictionPolicy")
    rng = random.Random(0)  # noqa: S311  (the same churn every time)
    held: dict[str, int] = {}
    evicted = 0
    require(list(policy.victims()) == [], "a new policy has victims")
    for step in range(2000):
        key, size = f"m.{rng.randrange(60):x}", rng.randrange(1, 120)
        if key in held and rng.random() < 0.1:
            policy.remove(key, evicted=False)
            del held[key]
        elif key in held:
            policy.touch(key)
        else:
            while capacity is not None and sum(held.values()) + size > capacity:
                victim = next(policy.victims(), None)
                require(victim in held, f"the first victim {victim!r} is not in the tier")
                policy.remove(str(victim), evicted=True)
                del held[str(victim)]
                evicted += 1
            policy.admit(key, size)
            held[key] = size
        if step % 20 == 0:
            order = list(policy.victims())
            require(sorted(order) == sorted(held), "victims are not exactly the keys in the tier, each once")
            require(list(policy.victims()) == order, "asking for victims changes their order")
    return f"{evicted} evictions" if capacity is not None else ""


def _rewrite(policy: EvictionPolicy) -> str:
    for key in "abc":
        policy.admit(key, 100)
    policy.admit("b", 10)
    require(sorted(policy.victims()) == ["a", "b", "c"], "a rewritten key is listed twice or not at all")
    policy.remove("b", evicted=True)
    require(sorted(policy.victims()) == ["a", "c"], "a removed key is still a victim")
    policy.admit("b", 50)
    require(sorted(policy.victims()) == ["a", "b", "c"], "a key that came back is not a victim")
    return ""
