"""Watching the processes of a run: whoever ends before it should ends the run, with a reason."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lmcache_kit.contracts.launcher import LaunchedProcess, Launcher, LaunchSpec
from lmcache_kit.errors import LMCacheKitError, UnavailableError

__all__ = ["Supervisor", "last_lines"]

T = TypeVar("T")

GRACE_SECONDS = 20.0
"""Only what has a reason takes them: a server that computes in processes of its own waits for those to end."""

LOG_LINES = 15
_LATE_SECONDS = 0.5
_LOG_BYTES = 16_384
_IN_USE = ("address already in use", "is in use", "eaddrinuse")


@dataclass(slots=True, eq=False)
class _Watched:
    process: LaunchedProcess
    spec: LaunchSpec
    ports: str
    ended: asyncio.Task[int]
    expected: bool = False
    """Whether the process may end, since it was killed on purpose."""


class Supervisor:
    """Starts processes, runs work beside them, and stops them all.

    Args:
        launcher: where processes come from; closed with the supervisor.
    """

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._watched: list[_Watched] = []
        self._changed = asyncio.Event()

    async def start(self, spec: LaunchSpec, *, ports: str) -> None:
        """Start one process; ``ports`` are the scenario settings of its ports, for a message when one is taken."""
        process = await self._launcher.launch(spec)
        ended = asyncio.create_task(process.wait(), name=f"wait for {spec.name}")
        self._watched.append(_Watched(process, spec, ports, ended))

    async def kill(self, name: str) -> None:
        """End the process of that specification at once. From now on it is expected to be gone."""
        watched = self._watched[self._position(name)]
        watched.expected = True
        await watched.process.kill()
        await asyncio.wait({watched.ended})

    async def restart(self, spec: LaunchSpec, *, ports: str) -> None:
        """Start a process in the place of the killed one of the same name; it is watched like the first."""
        position = self._position(spec.name)
        assert self._watched[position].ended.done()
        process = await self._launcher.launch(spec)
        ended = asyncio.create_task(process.wait(), name=f"wait for {spec.name}")
        self._watched[position] = _Watched(process, spec, ports, ended)
        self._changed.set()

    def _position(self, name: str) -> int:
        return next(position for position, each in enumerate(self._watched) if each.spec.name == name)

    async def run(self, work: Coroutine[Any, Any, T], *, during: str) -> T:
        """The result of ``work``, unless a process ends first: then ``work`` is cancelled and the error says who.

        The end of a process that :meth:`kill` ended is expected and changes nothing.
        """
        task = asyncio.ensure_future(work)
        try:
            gone = await self._first_gone(task)
            # A request to a process that died may fail a moment before the process itself is seen to have ended.
            if gone is None and not task.cancelled() and isinstance(task.exception(), LMCacheKitError):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LATE_SECONDS):
                        gone = await self._first_gone()
            if gone is not None:
                raise self._error(gone, during)
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _first_gone(self, task: asyncio.Future[Any] | None = None) -> _Watched | None:
        """The first process to end unexpectedly; None once ``task`` is done."""
        while True:
            gone = next((each for each in self._watched if each.ended.done() and not each.expected), None)
            if gone is not None or (task is not None and task.done()):
                return gone
            self._changed.clear()
            changed = asyncio.ensure_future(self._changed.wait())
            waiting: set[asyncio.Future[Any]] = {changed, *(each.ended for each in self._watched if not each.expected)}
            if task is not None:
                waiting.add(task)
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()

    async def stop(self) -> None:
        """Stop every process, the last started first; all of them even when one cannot be stopped."""
        try:
            await asyncio.gather(
                *(each.process.stop(grace=GRACE_SECONDS) for each in reversed(self._watched)), return_exceptions=True
            )
            for each in self._watched:
                each.ended.cancel()
            await asyncio.gather(*(each.ended for each in self._watched), return_exceptions=True)
            self._watched.clear()
        finally:
            await self._launcher.close()

    def _error(self, gone: _Watched, during: str) -> LMCacheKitError:
        log = gone.spec.log
        lines = last_lines(log)
        if any(text in line.lower() for line in lines for text in _IN_USE):
            return UnavailableError(
                f"{gone.spec.name} found one of its ports in use during {during}{_quoted(lines)}",
                hint=f"change {gone.ports}; 0 chooses a free port (whole log: {log})",
            )
        return UnavailableError(
            f"{gone.spec.name} {_how(gone.ended.result())} during {during}{_quoted(lines)}", hint=f"whole log: {log}"
        )


def _how(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def _quoted(lines: Iterable[str]) -> str:
    text = "".join(f"\n    {line}" for line in lines)
    return f"; the last lines of its log:{text}" if text else "; its log is empty"


def last_lines(path: Path, count: int = LOG_LINES) -> list[str]:
    """The last lines of a log, or none when it cannot be read."""
    try:
        with path.open("rb") as log:
            log.seek(0, 2)
            log.seek(max(0, log.tell() - _LOG_BYTES))
            return log.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []
