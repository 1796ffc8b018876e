"""What every placement policy must do, for tiers of any number and in any state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache_kit.contracts.placement import PlacementPolicy, Promotion, TierView
from lmcache_kit.contracts.records import Options, PlacementPlugin
from lmcache_kit.testing.suites.base import PluginTests, examples, made

__all__ = ["PlacementTests"]

_SIZES = st.integers(0, 120) | st.just(2**40)


def _tier(index: int, capacity: int | None, used: int, writable: bool) -> TierView:
    return TierView(location=f"Tier{index}", capacity_bytes=capacity, used_bytes=used, writable=writable)


@st.composite
def _fleets(draw: st.DrawFn) -> tuple[TierView, ...]:
    """One to five tiers: unbounded, empty, full, overfull, too small, read-only, in any order."""
    count = draw(st.integers(1, 5))
    states = st.tuples(st.none() | st.integers(0, 100), st.integers(0, 130), st.sampled_from([True, True, True, False]))
    return tuple(_tier(index, *draw(states)) for index in range(count))


@st.composite
def _questions(draw: st.DrawFn) -> tuple[str, tuple[Any, ...]]:
    """A call of one of the four methods, as a store makes it: its name and its arguments."""
    tiers, nbytes = draw(_fleets()), draw(_SIZES)
    tier = draw(st.integers(0, len(tiers) - 1))
    held = sorted(draw(st.sets(st.sampled_from(range(len(tiers))))))
    name = draw(st.sampled_from(["on_store", "on_idle", "on_hit", "on_evict"]))
    return name, {
        "on_store": (tiers, nbytes),
        "on_idle": (tiers, tuple(held) or (tier,), nbytes),
        "on_hit": (tiers, tier, nbytes),
        "on_evict": (tiers, tier, tuple(index for index in held if index != tier), nbytes),
    }[name]


def _asked(policy: PlacementPolicy, question: tuple[str, tuple[Any, ...]]) -> Any:
    """The answer, with sequences as lists."""
    name, arguments = question
    answer = getattr(policy, name)(*arguments)
    return list(answer) if name in ("on_store", "on_idle") else answer


def _check_tiers(answer: Sequence[Any], tiers: Sequence[TierView], method: str) -> None:
    for index in answer:
        assert type(index) is int, f"{method} answers {index!r}, not the index of a tier"
        assert 0 <= index < len(tiers), f"{method} names tier {index}; there are {len(tiers)}, counted from 0"
    assert len(set(answer)) == len(answer), f"{method} names a tier twice: {list(answer)}"


class PlacementTests(PluginTests):
    """What :class:`lmcache_kit.contracts.PlacementPolicy` promises; where objects belong is the policy's own affair."""

    record_type = PlacementPlugin
    contract = PlacementPolicy

    @pytest.fixture
    def make_policy(self, record: PlacementPlugin, made_options: Options) -> Callable[[], PlacementPolicy]:
        """Makes another policy of the same options."""
        return lambda: made(lambda: record.factory(made_options))

    def test_a_store_goes_to_tiers_that_exist_each_once(self, subject: PlacementPolicy) -> None:
        @examples(150)
        @given(tiers=_fleets(), nbytes=_SIZES)
        def check(tiers: tuple[TierView, ...], nbytes: int) -> None:
            _check_tiers(list(subject.on_store(tiers, nbytes)), tiers, "on_store")

        check()

    def test_something_is_stored_where_every_tier_has_room(self, subject: PlacementPolicy) -> None:
        for count in range(1, 6):
            tiers = [_tier(index, None if index % 2 else 2**40, 0, True) for index in range(count)]
            stored = [subject.on_store(tiers, 2**exponent) for exponent in range(0, 33, 4)]
            assert any(stored), f"objects of 1 byte to 4 GiB are stored nowhere, although {count} empty tiers have room"

    def test_copies_made_later_go_to_tiers_that_exist_each_once(self, subject: PlacementPolicy) -> None:
        @examples(150)
        @given(tiers=_fleets(), nbytes=_SIZES, data=st.data())
        def check(tiers: tuple[TierView, ...], nbytes: int, data: st.DataObject) -> None:
            held = sorted(data.draw(st.sets(st.sampled_from(range(len(tiers))), min_size=1), label="held"))
            _check_tiers(list(subject.on_idle(tiers, held, nbytes)), tiers, "on_idle")

        check()

    def test_a_hit_promotes_upwards_or_not_at_all(self, subject: PlacementPolicy) -> None:
        @examples(150)
        @given(tiers=_fleets(), nbytes=_SIZES, data=st.data())
        def check(tiers: tuple[TierView, ...], nbytes: int, data: st.DataObject) -> None:
            tier = data.draw(st.integers(0, len(tiers) - 1), label="tier")
            promotion = subject.on_hit(tiers, tier, nbytes)
            if promotion is None:
                return
            assert isinstance(promotion, Promotion), f"on_hit answers {promotion!r}, not a Promotion"
            _check_tiers([promotion.target], tiers, "on_hit")
            assert promotion.target < tier, (
                f"on_hit moves an object that was read from tier {tier} to tier {promotion.target}, which is not faster"
            )
            assert isinstance(promotion.keep_source, bool), f"keep_source is {promotion.keep_source!r}"

        check()

    def test_an_eviction_names_a_tier_that_exists_or_none(self, subject: PlacementPolicy) -> None:
        @examples(150)
        @given(tiers=_fleets(), nbytes=_SIZES, data=st.data())
        def check(tiers: tuple[TierView, ...], nbytes: int, data: st.DataObject) -> None:
            tier = data.draw(st.integers(0, len(tiers) - 1), label="tier")
            others = [index for index in range(len(tiers)) if index != tier]
            held = sorted(data.draw(st.sets(st.sampled_from(others)) if others else st.just(set()), label="held"))
            target = subject.on_evict(tiers, tier, held, nbytes)
            if target is not None:
                _check_tiers([target], tiers, "on_evict")

        check()

    def test_the_same_question_has_the_same_answer_whatever_was_asked_before(
        self, make_policy: Callable[[], PlacementPolicy]
    ) -> None:
        @examples(100)
        @given(questions=st.lists(_questions(), min_size=1, max_size=8))
        def check(questions: list[tuple[str, tuple[Any, ...]]]) -> None:
            used = make_policy()
            for question in [*questions, *questions]:
                fresh = make_policy()
                want = _asked(fresh, question)
                assert _asked(used, question) == want, f"{question[0]} answers otherwise after other calls"
                assert _asked(fresh, question) == want, f"{question[0]} answers otherwise when it is asked again"

        check()

    def test_arguments_are_left_as_they_are_and_may_be_any_sequence(self, subject: PlacementPolicy) -> None:
        @examples(60)
        @given(question=_questions())
        def check(question: tuple[str, tuple[Any, ...]]) -> None:
            name, arguments = question
            lists = tuple(list(each) if isinstance(each, tuple) else each for each in arguments)
            want = _asked(subject, question)
            assert _asked(subject, (name, lists)) == want, f"{name} answers otherwise for lists than for tuples"
            kept = tuple(tuple(each) if isinstance(each, list) else each for each in lists)
            assert kept == arguments, f"{name} changed the sequences that it was given"

        check()
