"""Processes on this machine, each in a session of its own, none of which outlives the runner."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable

from lmcache_kit.builtin.launchers import guard
from lmcache_kit.contracts.launcher import LaunchedProcess, Launcher, LaunchSpec
from lmcache_kit.errors import UnavailableError
from lmcache_kit.plugins import ALLOW_VARIABLE, MODULES_VARIABLE

__all__ = ["LocalLauncher", "LocalProcess"]


_KEPT = (ALLOW_VARIABLE, MODULES_VARIABLE)


class LocalProcess(LaunchedProcess):
    """A child process. It leads a process group, so what it starts ends with it; ``gone`` is called once it has."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, gone: Callable[[int], Awaitable[None]]) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process
        self._gone = gone

    async def wait(self) -> int:
        return await self._process.wait()

    async def stop(self, *, grace: float) -> None:
        if self._process.returncode is None:
            # To itself alone: how its children end in order is its own business.
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), grace)
                await asyncio.wait_for(self._group_ended(), guard.LINGER_SECONDS)
        await self.kill()

    async def kill(self) -> None:
        # Also when the process itself has ended: what it started may not have.
        guard.kill_all_but_trackers(self.pid)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._group_ended(), guard.LINGER_SECONDS)
        guard.kill_group(self.pid)
        await self._process.wait()
        await self._gone(self.pid)

    async def _group_ended(self) -> None:
        while guard.group_lives(self.pid):  # noqa: ASYNC110  (the kernel tells only who asks)
            await asyncio.sleep(guard.POLL_SECONDS)


class LocalLauncher(Launcher):
    """Starts ``lmcache-kit`` with this interpreter.

    A process has a session of its own, so Ctrl-C reaches the runner alone, which then ends the fleet in order. Should
    the runner itself die without a word, the kernel ends the processes (see the module ``child``), and a guard what
    they have started (see the module ``guard``).
    """

    def __init__(self) -> None:
        self._guard: guard.Guard | None = None

    async def launch(self, spec: LaunchSpec) -> LocalProcess:
        environment = {**_inherited(), "PYTHONUNBUFFERED": "1", **spec.env}
        command = [sys.executable, "-m", "lmcache_kit.builtin.launchers.child", str(os.getpid()), *spec.argv]
        try:
            self._guard = self._guard or await guard.Guard.start()
            spec.log.parent.mkdir(parents=True, exist_ok=True)
            with spec.log.open("ab") as log:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    cwd=spec.cwd,
                    start_new_session=True,
                )
        except OSError as error:
            raise UnavailableError(f"{spec.name} cannot be started: {error}") from None
        await self._guard.watch(process.pid)
        return LocalProcess(spec.name, process, self._guard.forget)

    async def close(self) -> None:
        watching, self._guard = self._guard, None
        if watching is not None:
            await watching.close()


def _inherited() -> dict[str, str]:
    """The environment without settings meant for other LMCache processes of this user, which would override ours."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LMCACHE_") or name in _KEPT}
