"""Eviction policies against oracles that keep one flat list of facts and sort it."""

from __future__ import annotations

import itertools
import random
from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcache_kit.builtin.eviction.arc import ARC
from lmcache_kit.builtin.eviction.fifo import FIFO
from lmcache_kit.builtin.eviction.lfu import LFU
from lmcache_kit.builtin.eviction.lru import LRU
from lmcache_kit.builtin.eviction.mru import MRU

KEYS = st.sampled_from("abcdefgh")
CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), KEYS, st.integers(0, 40)),
        st.tuples(st.just("touch"), KEYS),
        st.tuples(st.just("remove"), KEYS, st.booleans()),
        st.tuples(st.just("keep_front"), st.lists(KEYS, unique=True)),
    ),
    max_size=60,
)


class Facts:
    """When each key was stored, when it was used last and how often; the order is computed on demand."""

    def __init__(self, order, front_last=reversed) -> None:
        self.order, self.front_last, self.clock, self.facts = order, front_last, itertools.count(), {}

    def admit(self, key, nbytes):
        now = next(self.clock)
        self.facts.setdefault(key, {"stored": now, "used": now, "uses": 1})

    def touch(self, key):
        if key in self.facts:
            self.facts[key]["used"] = next(self.clock)
            self.facts[key]["uses"] += 1

    def keep_front(self, keys):
        for key in self.front_last(keys):
            if key in self.facts:
                self.facts[key]["used"] = next(self.clock)

    def remove(self, key, *, evicted):
        self.facts.pop(key, None)

    def victims(self):
        return sorted(self.facts, key=lambda key: self.order(self.facts[key]))


class NaiveARC:
    """The four lists of the paper as plain lists, every sum taken afresh."""

    def __init__(self, capacity) -> None:
        self.fixed, self.peak, self.p = capacity, 0, 0.0
        self.t1, self.t2, self.b1, self.b2 = [], [], [], []  # (key, bytes), oldest first

    @staticmethod
    def total(entries):
        return sum(nbytes for _, nbytes in entries)

    def lists(self):
        return self.t1, self.t2, self.b1, self.b2

    @property
    def c(self):
        return self.peak if self.fixed is None else self.fixed

    def take(self, entries, key):
        for entry in entries:
            if entry[0] == key:
                entries.remove(entry)
                return entry
        return None

    def admit(self, key, nbytes):
        ghosts1, ghosts2 = self.total(self.b1), self.total(self.b2)
        for entries in (self.t1, self.t2):
            for index, (known, _) in enumerate(entries):
                if known == key:
                    entries[index] = (key, nbytes)
                    return self.trim()
        if self.take(self.b1, key):
            self.p = min(float(self.c), self.p + nbytes * max(1.0, ghosts2 / max(1, ghosts1)))
            self.t2.append((key, nbytes))
        elif self.take(self.b2, key):
            self.p = max(0.0, self.p - nbytes * max(1.0, ghosts1 / max(1, ghosts2)))
            self.t2.append((key, nbytes))
        else:
            self.t1.append((key, nbytes))
        return self.trim()

    def touch(self, key):
        entry = self.take(self.t1, key) or self.take(self.t2, key)
        if entry:
            self.t2.append(entry)

    def keep_front(self, keys):
        for key in reversed(keys):
            for entries in (self.t1, self.t2):
                entries.sort(key=lambda entry: entry[0] == key)

    def remove(self, key, *, evicted):
        for entries, ghosts in ((self.t1, self.b1), (self.t2, self.b2)):
            entry = self.take(entries, key)
            if entry and evicted:
                ghosts.append(entry)
                self.trim()

    def trim(self):
        self.peak = max(self.peak, self.total(self.t1) + self.total(self.t2))
        while self.b1 and self.total(self.t1) + self.total(self.b1) > self.c:
            self.b1.pop(0)
        while self.b2 and sum(map(self.total, self.lists())) > 2 * self.c:
            self.b2.pop(0)
        while self.b1 and sum(map(self.total, self.lists())) > 2 * self.c:
            self.b1.pop(0)

    def victims(self):
        t1, t2, order = list(self.t1), list(self.t2), []
        while t1 or t2:
            source = t1 if t1 and (not t2 or self.total(t1) > self.p) else t2
            order.append(source.pop(0)[0])
        return order


POLICIES = {
    "lru": (LRU, lambda: Facts(lambda fact: fact["used"])),
    "mru": (MRU, lambda: Facts(lambda fact: -fact["used"], front_last=list)),
    "fifo": (FIFO, lambda: Facts(lambda fact: fact["stored"])),
    "lfu": (LFU, lambda: Facts(lambda fact: (fact["uses"], fact["used"]))),
    "arc": (lambda: ARC(100), lambda: NaiveARC(100)),
    "arc unbounded": (lambda: ARC(None), lambda: NaiveARC(None)),
    "arc without room": (lambda: ARC(0), lambda: NaiveARC(0)),
}


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=150)
@given(calls=CALLS)
def test_the_order_of_victims_is_the_oracles(name, calls):
    policy, oracle = (make() for make in POLICIES[name])
    for call, key, *rest in calls:
        for subject in (policy, oracle):
            if call == "admit":
                subject.admit(key, rest[0])
            elif call in ("touch", "keep_front"):
                getattr(subject, call)(key)
            else:
                subject.remove(key, evicted=rest[0])
        assert list(policy.victims()) == oracle.victims()


@settings(max_examples=150)
@given(calls=CALLS, capacity=st.none() | st.integers(0, 120))
def test_arc_keeps_the_bounds_of_the_paper(calls, capacity):
    policy, held = ARC(capacity), {}
    for call, key, *rest in calls:
        if call == "admit":
            policy.admit(key, rest[0])
            held[key] = rest[0]
        elif call == "touch":
            policy.touch(key)
        elif call == "keep_front":
            policy.keep_front(key)
        else:
            policy.remove(key, evicted=rest[0])
            held.pop(key, None)
        assert sorted(policy.victims()) == sorted(held)
        assert 0 <= policy.target_bytes <= (sum(held.values()) + 10_000 if capacity is None else capacity)
        # Ghosts never weigh more than the capacity (or what was held), however long it runs.
        ghosts = policy._recent_ghosts.nbytes + policy._frequent_ghosts.nbytes
        assert ghosts == 0 or ghosts + sum(held.values()) <= 2 * policy._capacity
        for queue in (policy._recent, policy._frequent, policy._recent_ghosts, policy._frequent_ghosts):
            assert queue.nbytes == sum(queue.sizes.values())


def hits(policy, capacity: int, requests: list[int]) -> int:
    """Hits of unit-sized objects in a tier that evicts before it admits."""
    held, count = set(), 0
    for request in requests:
        key = str(request)
        if key in held:
            policy.touch(key)
            count += 1
            continue
        while len(held) >= capacity:
            victim = next(policy.victims())
            policy.remove(victim, evicted=True)
            held.remove(victim)
        policy.admit(key, 1)
        held.add(key)
    return count


def paper_hits(c: int, requests: list[int]) -> int:
    """ARC for unit pages, line by line as figure 4 of the paper has it."""
    t1, t2, b1, b2 = (OrderedDict() for _ in range(4))
    p, count = 0.0, 0

    def replace(x) -> None:
        if t1 and (len(t1) > p or (x in b2 and len(t1) == p)):
            b1[t1.popitem(last=False)[0]] = None
        else:
            b2[t2.popitem(last=False)[0]] = None

    for x in requests:
        if x in t1 or x in t2:
            count += 1
            (t1 if x in t1 else t2).pop(x)
            t2[x] = None
        elif x in b1:
            p = min(c, p + max(1.0, len(b2) / len(b1)))
            replace(x)
            del b1[x]
            t2[x] = None
        elif x in b2:
            p = max(0.0, p - max(1.0, len(b1) / len(b2)))
            replace(x)
            del b2[x]
            t2[x] = None
        else:
            if len(t1) + len(b1) == c:
                if len(t1) < c:
                    b1.popitem(last=False)
                    replace(x)
                else:
                    t1.popitem(last=False)
            elif len(t1) + len(t2) + len(b1) + len(b2) >= c:
                if len(t1) + len(t2) + len(b1) + len(b2) == 2 * c:
                    b2.popitem(last=False)
                if len(t1) + len(t2) >= c:
                    replace(x)
            t1[x] = None
    return count


def zipf(rng: random.Random, count: int, keys: int, exponent: float) -> list[int]:
    weights = [1 / (rank + 1) ** exponent for rank in range(keys)]
    return rng.choices(range(keys), weights, k=count)


def workload(name: str) -> list[int]:
    rng = random.Random(7)
    if name == "zipf":
        return zipf(rng, 8000, 1000, 0.9)
    if name == "zipf with scans":
        requests, fresh = [], itertools.count(10_000)
        for _ in range(40):
            requests += zipf(rng, 150, 300, 0.9)
            requests += [next(fresh) for _ in range(120)]
        return requests
    if name == "moving working set":
        return [rng.randrange(80) + 80 * (step // 1500) for step in range(9000)]
    return [step % 150 for step in range(6000)]  # a loop larger than the cache


WORKLOADS = ("zipf", "zipf with scans", "moving working set", "loop")


@pytest.mark.parametrize("name", WORKLOADS)
def test_arc_hits_about_as_often_as_the_algorithm_of_the_paper(name):
    requests = workload(name)
    ours, paper = hits(ARC(100), 100, requests), paper_hits(100, requests)
    assert abs(ours - paper) <= 0.02 * len(requests)


def test_arc_resists_scans_and_mru_keeps_part_of_a_loop():
    scans, loop = workload("zipf with scans"), workload("loop")
    assert hits(ARC(100), 100, scans) > 1.1 * hits(LRU(), 100, scans)
    assert hits(LRU(), 100, loop) == 0
    assert hits(MRU(), 100, loop) > 0.5 * len(loop)
