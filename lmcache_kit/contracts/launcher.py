"""Launchers: where the processes of a wall-clock run live.

All methods are coroutines on the runner's event loop. Times are in seconds.

Capabilities:
    ``faults``: a process can be killed during a run and started again with the same specification, in the same place,
        as a scenario's faults want it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["LaunchSpec", "LaunchedProcess", "Launcher"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """One process.

    Args:
        name: for messages, e.g. ``instance a``.
        argv: arguments of ``lmcache-kit``, without the program itself.
        env: variables set on top of the inherited ones.
        log: file that takes its standard output and error.
        cwd: folder that relative paths in its configuration start from; None for the launcher's own.
    """

    name: str
    argv: Sequence[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None


class LaunchedProcess(ABC):
    """A process that was started."""

    name: str

    @abstractmethod
    async def wait(self) -> int:
        """The exit status, once it ends; negative for a signal."""

    @abstractmethod
    async def stop(self, *, grace: float) -> None:
        """Ask it to end, and make it end after ``grace`` seconds, with everything that it started. Idempotent."""

    @abstractmethod
    async def kill(self) -> None:
        """End it at once, as ``kill -9`` would."""


class Launcher(ABC):
    """Starts processes."""

    @abstractmethod
    async def launch(self, spec: LaunchSpec) -> LaunchedProcess:
        """Start one process; returns once it runs, not once it is ready. Raises UnavailableError when it cannot."""

    async def close(self) -> None:  # noqa: B027  (optional to override, not abstract)
        """Release what the launcher holds; all its processes were stopped before."""
