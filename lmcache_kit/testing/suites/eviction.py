"""What every eviction policy must do, against a plain set of the keys that are in the tier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache_kit.contracts.eviction import EvictionPolicy
from lmcache_kit.contracts.records import EvictionPlugin, Options
from lmcache_kit.testing.suites.base import PluginTests, examples, made
from lmcache_kit.testing.suites.eviction_effort import allocated_by, kept_by, steps_of

__all__ = ["EvictionPolicyTests"]

MakePolicy = Callable[[int | None], EvictionPolicy]
Call = tuple[str, str | tuple[str, ...], Any]

_CAPACITY = 1000
_KEYS = st.sampled_from([f"model@{name}@fp@{number:032x}" for number, name in enumerate("abcdefghij")])
_SIZES = st.integers(0, 300) | st.sampled_from([_CAPACITY, _CAPACITY + 1, 2**40])
_ADMIT = st.tuples(st.just("admit"), _KEYS, _SIZES)
_TOUCH = st.tuples(st.just("touch"), _KEYS, st.none())
_REMOVE = st.tuples(st.just("remove"), _KEYS, st.booleans())
_PROMPT = st.tuples(st.just("keep_front"), st.lists(_KEYS, unique=True, max_size=5).map(tuple), st.none())
_CALLS = st.lists(_ADMIT | _TOUCH | _REMOVE | _PROMPT, max_size=60)
_CAPACITIES = st.sampled_from([_CAPACITY, None, 0, 1, 2**40])


class _OtherHash(str):
    """The same text with another hash, as another process would give it: sets and dicts order it differently."""

    __slots__ = ()

    def __hash__(self) -> int:
        return hash((str(self), "elsewhere"))


def _apply(policy: EvictionPolicy, call: Call, key_type: type[str] = str) -> None:
    name, keys, argument = call
    if isinstance(keys, tuple):
        policy.keep_front([key_type(key) for key in keys])
    elif name == "admit":
        policy.admit(key_type(keys), argument)
    elif name == "touch":
        policy.touch(key_type(keys))
    else:
        policy.remove(key_type(keys), evicted=argument)


def _replay(policy: EvictionPolicy, calls: Iterable[Call], key_type: type[str] = str) -> list[str]:
    """The order of victims after ``calls``."""
    for call in calls:
        _apply(policy, call, key_type)
    return [str(key) for key in policy.victims()]


def _check_keys(policy: EvictionPolicy, held: Iterable[str], after: str) -> None:
    """``victims()`` must yield ``held``, each once."""
    found, want = Counter(policy.victims()), set(held)
    repeated = sorted(key for key, count in found.items() if count > 1)
    assert not repeated, f"victims() yields {repeated[0]!r} {found[repeated[0]]} times after {after}"
    missing, extra = sorted(want - set(found)), sorted(set(found) - want)
    assert not missing, f"victims() leaves out {missing[0]!r}, which is in the tier, after {after}"
    assert not extra, f"victims() yields {extra[0]!r}, which is not in the tier, after {after}"


def _fill(policy: EvictionPolicy, count: int) -> None:
    for number in range(count):
        policy.admit(f"key-{number}", 10)
        if number % 3 == 0:
            policy.touch(f"key-{number // 2}")
        if number % 4 == 3:  # a prompt of four chunks
            policy.keep_front([f"key-{number - place}" for place in (3, 2, 1, 0)])


def _drain(policy: EvictionPolicy, count: int) -> None:
    """Evict ``count`` keys one by one, as a tier does that makes room for one object after another."""
    for _ in range(count):
        policy.remove(next(iter(policy.victims())), evicted=True)


class EvictionPolicyTests(PluginTests):
    """What :class:`lmcache_kit.contracts.EvictionPolicy` promises; the order itself is the policy's own affair."""

    record_type = EvictionPlugin
    contract = EvictionPolicy

    @pytest.fixture
    def make_policy(self, record: EvictionPlugin, made_options: Options) -> MakePolicy:
        """Makes a policy for a tier of the given capacity in bytes, None for an unbounded one."""
        return lambda capacity_bytes: made(lambda: record.factory(made_options, capacity_bytes))

    @pytest.fixture
    def subject(self, make_policy: MakePolicy) -> Any:
        return make_policy(_CAPACITY)

    @pytest.mark.parametrize("capacity", [_CAPACITY, 0, None], ids=["bounded", "without room", "unbounded"])
    def test_a_new_policy_has_no_victims(self, make_policy: MakePolicy, capacity: int | None) -> None:
        assert list(make_policy(capacity).victims()) == []

    def test_victims_are_exactly_the_keys_in_the_tier_each_once(self, make_policy: MakePolicy) -> None:
        @examples(150)
        @given(calls=_CALLS, capacity=_CAPACITIES, looks=st.booleans())
        def check(calls: list[Call], capacity: int | None, looks: bool) -> None:
            policy, held = make_policy(capacity), set[str]()
            for name, keys, argument in calls:
                _apply(policy, (name, keys, argument))
                if name == "admit":
                    held.add(str(keys))
                elif name == "remove":
                    held.discard(str(keys))
                if looks:
                    _check_keys(policy, held, f"{name} of {keys!r}")
            _check_keys(policy, held, f"{len(calls)} calls")

        check()

    def test_a_rewritten_key_stays_one_key(self, make_policy: MakePolicy) -> None:
        @examples(30)
        @given(sizes=st.lists(_SIZES, min_size=1, max_size=6), touches=st.integers(0, 3), evicted=st.booleans())
        def check(sizes: list[int], touches: int, evicted: bool) -> None:
            policy = make_policy(_CAPACITY)
            for size in (100, *sizes):
                for key in ("a", "b", "c"):
                    policy.admit(key, size if key == "b" else 100)
                for _ in range(touches):
                    policy.touch("b")
            _check_keys(policy, "abc", "rewriting 'b'")
            policy.remove("b", evicted=evicted)
            _check_keys(policy, "ac", "removing the rewritten 'b'")

        check()

    def test_a_removed_key_is_no_victim_until_it_comes_back(self, make_policy: MakePolicy) -> None:
        @examples(30)
        @given(evictions=st.lists(st.booleans(), min_size=1, max_size=6), touches=st.integers(0, 3))
        def check(evictions: list[bool], touches: int) -> None:
            policy = make_policy(_CAPACITY)
            for key in "abc":
                policy.admit(key, 100)
            for evicted in evictions:
                for _ in range(touches):
                    policy.touch("b")
                policy.remove("b", evicted=evicted)
                _check_keys(policy, "ac", f"removing 'b' with evicted={evicted}")
                policy.admit("b", 100)
                _check_keys(policy, "abc", "admitting 'b' again")

        check()

    def test_keys_that_are_not_in_the_tier_are_ignored(self, make_policy: MakePolicy) -> None:
        @examples(30)
        @given(calls=_CALLS, stranger=st.sampled_from(["never-seen", "removed", "evicted"]), evicted=st.booleans())
        def check(calls: list[Call], stranger: str, evicted: bool) -> None:
            policy = make_policy(_CAPACITY)
            for key in ("removed", "evicted"):
                policy.admit(key, 10)
                policy.remove(key, evicted=key == "evicted")
            before = _replay(policy, calls)
            policy.touch(stranger)
            assert list(policy.victims()) == before, f"a touch of {stranger!r} changes what is there"
            policy.keep_front([stranger])
            assert list(policy.victims()) == before, f"a prompt with {stranger!r} changes what is there"
            policy.remove(stranger, evicted=evicted)
            assert list(policy.victims()) == before, f"a removal of {stranger!r} changes what is there"

        check()

    def test_asking_for_victims_changes_nothing(self, make_policy: MakePolicy) -> None:
        @examples(60)
        @given(calls=_CALLS, capacity=_CAPACITIES, taken=st.integers(0, 12))
        def check(calls: list[Call], capacity: int | None, taken: int) -> None:
            asked, left_alone = make_policy(capacity), make_policy(capacity)
            for call in calls:
                _apply(asked, call)
                # The tier stops as soon as it has enough, so most of these iterators are never finished.
                for _ in zip(range(taken), asked.victims(), strict=False):
                    pass
            want = _replay(left_alone, calls)
            assert list(asked.victims()) == want, "the order differs where victims were asked for in between"
            for some in range(len(want) + 1):
                assert list(islice(asked.victims(), some)) == want[:some], "asking twice gives two orders"
            assert list(asked.victims()) == want, "asking twice gives two orders"

        check()

    def test_the_same_calls_give_the_same_order(self, make_policy: MakePolicy) -> None:
        @examples(60)
        @given(calls=_CALLS, capacity=_CAPACITIES)
        def check(calls: list[Call], capacity: int | None) -> None:
            first, second = make_policy(capacity), make_policy(capacity)
            assert _replay(first, calls) == _replay(second, calls)

        check()

    def test_the_order_does_not_depend_on_how_keys_hash(self, make_policy: MakePolicy) -> None:
        @examples(60)
        @given(calls=_CALLS, capacity=_CAPACITIES)
        def check(calls: list[Call], capacity: int | None) -> None:
            first, second = make_policy(capacity), make_policy(capacity)
            assert _replay(first, calls) == _replay(second, calls, _OtherHash), (
                "the order follows the hash of the keys, so it is another one in every process"
            )

        check()

    def test_evicting_a_large_tier_one_by_one_takes_work_in_proportion(self, make_policy: MakePolicy) -> None:
        def work(count: int) -> int:
            policy = make_policy(10 * count)

            def run() -> None:
                _fill(policy, count)
                _drain(policy, count)

            return steps_of(run)

        small, large = work(100), work(1600)
        # 16 times the keys: 16 times the work, a little more with a heap or a tree; 256 times if each eviction walks.
        assert large <= 48 * max(small, 100), (
            f"evicting 1600 keys one by one runs {large} lines of Python, 100 keys {small}: "
            "the first victim is not found directly"
        )

    def test_the_first_victims_come_without_copying_the_tier(self, make_policy: MakePolicy) -> None:
        def taken(count: int) -> int:
            policy = make_policy(None)
            _fill(policy, count)
            return allocated_by(lambda: [key for key, _ in zip(policy.victims(), range(3), strict=False)])

        small, large = taken(500), taken(16_000)
        assert large <= 4 * small + 16_384, (
            f"three victims of 16,000 keys allocate {large} bytes, three of 500 keys {small}: victims() copies the tier"
        )

    def test_nothing_is_kept_of_deleted_keys(self, make_policy: MakePolicy) -> None:
        policy = make_policy(_CAPACITY)

        def churn(numbers: range) -> None:
            for number in numbers:
                policy.admit(f"short-lived-{number:050}", 10)
                policy.touch(f"short-lived-{number:050}")
                policy.remove(f"short-lived-{number:050}", evicted=number % 2 == 0)

        churn(range(3000))
        kept = kept_by(lambda: churn(range(3000, 6000)))
        # A list of ghosts may remember what fits into the capacity, here 100 or 200 keys of about 200 bytes.
        assert kept <= 100_000, f"3000 keys that came and went left {kept} bytes behind"
