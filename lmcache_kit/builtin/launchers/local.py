"""Processes on this machine, each in a session of its own, none of which outlives the runner."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys

from lmcache_kit.contracts.launcher import LaunchedProcess, Launcher, LaunchSpec
from lmcache_kit.errors import UnavailableError
from lmcache_kit.plugins import ALLOW_VARIABLE, MODULES_VARIABLE

__all__ = ["LocalLauncher", "LocalProcess"]


_KEPT = (ALLOW_VARIABLE, MODULES_VARIABLE)


class LocalProcess(LaunchedProcess):
    """A child process. It leads a process group, so what it starts ends with it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process

    async def wait(self) -> int:
        return await self._process.wait()

    async def stop(self, *, grace: float) -> None:
        if self._process.returncode is None:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), grace)
        await self.kill()

    async def kill(self) -> None:
        # Also when the process itself has ended: what it started may not have.
        self._signal(signal.SIGKILL)
        await self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


class LocalLauncher(Launcher):
    """Starts ``lmcache-kit`` with this interpreter.

    A process has a session of its own, so Ctrl-C reaches the runner alone, which then ends the fleet in order. Should
    the runner itself die without a word, the kernel ends the processes (see the module ``child``).
    """

    async def launch(self, spec: LaunchSpec) -> LocalProcess:
        environment = {**_inherited(), "PYTHONUNBUFFERED": "1", **spec.env}
        command = [sys.executable, "-m", "lmcache_kit.builtin.launchers.child", str(os.getpid()), *spec.argv]
        try:
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
        return LocalProcess(spec.name, process)


def _inherited() -> dict[str, str]:
    """The environment without settings meant for other LMCache processes of this user, which would override ours."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LMCACHE_") or name in _KEPT}
