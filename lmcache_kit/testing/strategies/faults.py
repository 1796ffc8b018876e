"""What goes wrong in a run, and when."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from lmcache_kit.errors import ConfigError
from lmcache_kit.faults.schedule import CONTROLLER, Fault, FaultKind, FaultPlan
from lmcache_kit.faults.state import FaultState

__all__ = ["fault_plans"]

_KINDS: tuple[FaultKind, ...] = ("kill", "restart", "slow_link", "partition", "full_tier")


@st.composite
def fault_plans(
    draw: st.DrawFn,
    instances: Sequence[str],
    *,
    locations: Sequence[str] = (),
    after: Sequence[str] = (),
    seconds: float = 10.0,
    max_faults: int = 6,
) -> FaultPlan:
    """Plans whose actions can be carried out in their order, as a checked scenario's can.

    Args:
        instances: ids to choose from; links need two.
        locations: tiers to fill; none without any.
        after: workloads whose start may be a fault's origin, besides the moment when the fleet is ready; the actions
            of each origin can be carried out by themselves.
        seconds: no fault begins later than this after its origin, and none lasts longer.
        max_faults: at most so many.

    Raises ValueError without instances.
    """
    if not instances:
        raise ValueError("faults need at least one instance to befall")
    kept: list[Fault] = []
    for _ in range(draw(st.integers(0, max_faults))):
        kind = draw(st.sampled_from(_KINDS))
        if (kind == "full_tier" and not locations) or (kind == "slow_link" and len(instances) < 2):
            continue
        fault = draw(_fault(len(kept), kind, instances, locations, after, seconds))
        if _can_be_done([*kept, fault], fault.after):
            kept.append(fault)
    return FaultPlan(kept)


@st.composite
def _fault(
    draw: st.DrawFn,
    position: int,
    kind: FaultKind,
    instances: Sequence[str],
    locations: Sequence[str],
    after: Sequence[str],
    seconds: float,
) -> Fault:
    # Whole tenths: moments that faults share are what an order has to be made for.
    tenths = int(seconds * 10)
    at = draw(st.integers(0, tenths)) / 10
    origin = draw(st.sampled_from([None, *after]))
    target: tuple[str, ...] = (
        draw(st.sampled_from([*instances, CONTROLLER] if kind in ("kill", "restart") else list(instances))),
    )
    until = location = bandwidth = latency = None
    if kind in ("slow_link", "partition"):
        ends = list(instances) if kind == "slow_link" else [*instances, CONTROLLER]
        other = draw(st.sampled_from([each for each in ends if each != target[0]]))
        target = tuple(sorted((target[0], other)))
    if kind == "slow_link":
        bandwidth = draw(st.sampled_from([None, 1e6, 1e9]))
        latency = draw(st.sampled_from([0.001, 0.5]))
    if kind == "full_tier":
        location = draw(st.sampled_from(list(locations)))
    if kind not in ("kill", "restart") and draw(st.booleans()):
        until = at + draw(st.integers(1, max(1, tenths))) / 10
    return Fault(
        position=position,
        kind=kind,
        target=target,
        at=at,
        after=origin,
        until=until,
        location=location,
        bandwidth=bandwidth,
        latency=latency,
    )


def _can_be_done(faults: Sequence[Fault], after: str | None) -> bool:
    state = FaultState()
    try:
        for action in FaultPlan(faults).actions(after):
            state.apply(action)
    except ConfigError:
        return False
    return True
