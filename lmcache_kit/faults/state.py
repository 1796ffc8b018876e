"""Which faults are in force, and which action contradicts them."""

from __future__ import annotations

from lmcache_kit.errors import ConfigError
from lmcache_kit.faults.schedule import FaultAction

__all__ = ["FaultState"]


class FaultState:
    """Follows the actions of a plan, first while it is checked and then while it is carried out."""

    def __init__(self) -> None:
        self.down: set[str] = set()
        """What was killed and not restarted: instance ids, ``controller``."""
        self._lasting: set[tuple[str, tuple[str, ...], str | None]] = set()

    def apply(self, action: FaultAction) -> None:
        """Take one action. Raises ConfigError, with nothing changed, when it cannot be done in this state."""
        fault = action.fault
        lasting = (fault.kind, fault.target, fault.location)
        if action.step == "end":
            self._lasting.discard(lasting)
            return
        down = [each for each in fault.target if each in self.down]
        if fault.kind == "restart":
            if not down:
                raise ConfigError(f"{fault.name} is not down", hint="kill it first")
            self.down -= {*down}
            return
        if down:
            again = "down already" if fault.kind == "kill" else "down"
            raise ConfigError(f"{down[0]} is {again}", hint="restart it first")
        if fault.kind == "kill":
            self.down |= {*fault.target}
            return
        if lasting in self._lasting:
            raise ConfigError(
                f"another {fault.kind} of {fault.name} still lasts", hint="let it end before, or write one of them"
            )
        self._lasting.add(lasting)
