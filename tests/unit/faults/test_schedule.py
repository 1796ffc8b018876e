"""Plans and states of faults against models that know nothing of how they are kept."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache_kit.errors import ConfigError
from lmcache_kit.faults import Fault, FaultAction, FaultPlan, FaultState

KINDS = ("kill", "restart", "slow_link", "partition", "full_tier")
ENDS = ("a", "b", "controller")


@st.composite
def faults(draw: st.DrawFn, position: int = 0) -> Fault:
    kind = draw(st.sampled_from(KINDS))
    at = draw(st.sampled_from((0.0, 1.0, 1.5, 2.0, 3.0)))
    lasting = kind in ("slow_link", "partition", "full_tier")
    until = draw(st.sampled_from((None, at + 0.5, at + 1.0, at + 2.0))) if lasting else None
    pair = draw(st.sampled_from((("a", "b"), ("a", "controller"), ("b", "controller"))))
    return Fault(
        position=position,
        kind=kind,
        target=pair if kind in ("slow_link", "partition") else (draw(st.sampled_from(ENDS)),),
        at=at,
        after=draw(st.sampled_from((None, "serve"))),
        until=until,
        location=draw(st.sampled_from(("x", "y"))) if kind == "full_tier" else None,
    )


@st.composite
def plans(draw: st.DrawFn) -> list[Fault]:
    return [draw(faults(position)) for position in range(draw(st.integers(0, 8)))]


@given(plans())
def test_every_begin_and_end_is_there_once_in_the_order_of_time(listed: list[Fault]) -> None:
    plan = FaultPlan(listed)
    assert bool(plan) == bool(listed)
    assert plan.actions("another") == []
    for after in (None, "serve"):
        actions = plan.actions(after)
        expected = [("begin", f.at, f) for f in listed if f.after == after]
        expected += [("end", f.until, f) for f in listed if f.after == after and f.until is not None]
        assert len(actions) == len(expected)
        for step, at, fault in expected:
            assert sum(a.step == step and a.at == at and a.fault is fault for a in actions) == 1
        for one, next_one in pairwise(actions):
            assert one.at <= next_one.at
            if one.at == next_one.at:
                assert (one.step, next_one.step) != ("begin", "end"), "what ends makes room for what begins"
                if one.step == next_one.step:
                    assert one.fault.position < next_one.fault.position


@given(plans())
def test_a_contradiction_is_refused_and_changes_nothing(listed: list[Fault]) -> None:
    state = FaultState()
    down: set[str] = set()
    lasting: list[tuple[object, ...]] = []  # the model: a list of what lasts
    for action in FaultPlan(listed).actions():
        fault = action.fault
        what = (fault.kind, fault.target, fault.location)
        reachable = not down & set(fault.target)
        if action.step == "end":
            possible = True
        elif fault.kind == "restart":
            possible = not reachable
        elif fault.kind == "kill":
            possible = reachable
        else:
            possible = reachable and what not in lasting
        if not possible:
            with pytest.raises(ConfigError):
                state.apply(action)
            assert state.down == down
            continue
        state.apply(action)
        if action.step == "end":
            # An end whose begin was refused ends what another fault began; a checked plan has no such thing.
            lasting = [each for each in lasting if each != what]
        elif fault.kind == "kill":
            down |= {*fault.target}
        elif fault.kind == "restart":
            down -= {*fault.target}
        else:
            lasting.append(what)
        assert state.down == down


def test_ends_that_read_the_same_when_joined_are_different_links() -> None:
    state = FaultState()
    for position, target in enumerate((("a-b", "c"), ("a", "b-c"))):
        fault = Fault(position=position, kind="partition", target=target, at=0.0)
        state.apply(FaultAction(at=0.0, step="begin", fault=fault))
        assert fault.name == "a-b-c"
