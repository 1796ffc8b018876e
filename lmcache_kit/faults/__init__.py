"""Faults of a run: when what goes wrong, the same on both clocks."""

from lmcache_kit.faults.driver import FaultDriver
from lmcache_kit.faults.schedule import CONTROLLER, Fault, FaultAction, FaultPlan, FaultTarget
from lmcache_kit.faults.state import FaultState

__all__ = ["CONTROLLER", "Fault", "FaultAction", "FaultDriver", "FaultPlan", "FaultState", "FaultTarget"]
