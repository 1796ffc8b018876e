"""What goes wrong in a run, and when: plain records in the order of time, the same for both clocks.

Nothing here waits or touches a process. :mod:`lmcache_kit.faults.driver` carries a plan out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = ["CONTROLLER", "Fault", "FaultAction", "FaultKind", "FaultPlan", "FaultTarget", "Step"]

CONTROLLER = "controller"
"""How the controller is named among the instances."""

FaultKind = Literal["kill", "restart", "slow_link", "partition", "full_tier"]
Step = Literal["begin", "end"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault of a scenario.

    Args:
        position: its place in the scenario's list.
        kind: what happens.
        target: whom it meets: an instance id or ``controller``, for a link both ends in alphabetical order.
        at: seconds after its origin.
        after: the workload whose start is the origin; None for the moment when the fleet is ready.
        until: seconds after the origin when it ends; None when it does not end by itself.
        location: the tier, of ``full_tier``.
        bandwidth: bytes per second, of ``slow_link``; None leaves it as it is.
        latency: seconds, of ``slow_link``; None leaves it as it is.
    """

    position: int
    kind: FaultKind
    target: tuple[str, ...]
    at: float
    after: str | None = None
    until: float | None = None
    location: str | None = None
    bandwidth: float | None = None
    latency: float | None = None

    @property
    def name(self) -> str:
        """Its target as events and messages show it, e.g. ``a``, ``a-b`` or ``a LocalDiskBackend``."""
        return "-".join(self.target) + (f" {self.location}" if self.location else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultAction:
    """The begin or the end of a fault, ``at`` seconds after the fault's origin."""

    at: float
    step: Step
    fault: Fault


class FaultPlan:
    """All actions of a run.

    Args:
        faults: in the scenario's order.
    """

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self.faults = tuple(faults)

    def __bool__(self) -> bool:
        return bool(self.faults)

    def actions(self, after: str | None = None) -> Sequence[FaultAction]:
        """The actions that count from ``after`` (None: from when the fleet is ready), in the order of time.

        At the same moment what ends comes before what begins, and then the scenario's order decides.
        """
        found: list[FaultAction] = []
        for fault in self.faults:
            if fault.after != after:
                continue
            found.append(FaultAction(at=fault.at, step="begin", fault=fault))
            if fault.until is not None:
                found.append(FaultAction(at=fault.until, step="end", fault=fault))
        return sorted(found, key=lambda action: (action.at, action.step == "begin", action.fault.position))


class FaultTarget(Protocol):
    """A fleet that faults can be done to, on either clock. Each method returns once the fault is in force."""

    async def kill(self, target: str) -> None:
        """End an instance or the ``controller`` at once; what it kept in memory is lost."""

    async def restart(self, target: str) -> None:
        """Start what was killed as it was started before; returns once it serves."""

    async def set_link(self, a: str, b: str, bandwidth: float | None, latency: float | None) -> None:
        """Shape the link between two instances, both ways: bytes per second, seconds; None: as the scenario has it."""

    async def cut(self, a: str, b: str) -> None:
        """Nothing passes between two instances, or an instance and the ``controller``; what is under way fails."""

    async def mend(self, a: str, b: str) -> None:
        """Undo :meth:`cut`."""

    async def fill_tier(self, instance: str, location: str) -> None:
        """Writes to the tier are refused from now on; reads go on."""

    async def empty_tier(self, instance: str, location: str) -> None:
        """Undo :meth:`fill_tier`."""
