"""One run of a sweep: a process of its own, which ends when the sweep does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmcache_kit.errors import ConfigError
from lmcache_kit.report import read_report

__all__ = ["run_cell"]

_GRACE_SECONDS = 30.0
"""How long a cancelled run may take to end its fleet before it is killed."""
_STARTER = "lmcache_kit.builtin.launchers.child"


async def run_cell(
    scenario: Path, overrides: Sequence[str], output: Path, log: Path
) -> tuple[dict[str, Any] | None, str | None]:
    """Run the scenario into ``output``: its report, None when it wrote none, and why it failed, None when it passed.

    What it says on stderr goes to ``log``. Cancelling ends the run in order.
    """
    command = [sys.executable, "-m", _STARTER, str(os.getpid()), "run", str(scenario), "--format", "json"]
    command += ["--output-dir", str(output), *(part for each in overrides for part in ("--set", each))]
    try:
        with log.open("wb") as file:
            # In a session of its own: Ctrl-C reaches the sweep alone, which then ends its runs.
            process = await asyncio.create_subprocess_exec(
                *command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True
            )
    except OSError as error:
        return None, f"the run cannot be started: {error}"
    try:
        status = await process.wait()
    except asyncio.CancelledError:
        await asyncio.shield(_stop(process))
        raise
    try:
        report = read_report(output / "report.json")
    except ConfigError:
        return None, _last_words(log, status)
    if report["status"] == "missed":
        missed = [outcome["path"] for outcome in report["expectations"] if outcome["met"] is False]
        return report, f"missed {', '.join(missed)}"
    return report, None if status == 0 else report["error"] or _last_words(log, status)


async def _stop(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), _GRACE_SECONDS)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _last_words(log: Path, status: int) -> str:
    """The error that a command ended with, hint included, or its last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [index for index, line in enumerate(lines) if line.startswith("error: ")]
    if errors:
        error = lines[errors[-1]].removeprefix("error: ")
        after = lines[errors[-1] + 1] if errors[-1] + 1 < len(lines) else ""
        return f"{error} ({after.removeprefix('hint: ')})" if after.startswith("hint: ") else error
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    return f"ended with {how}{': ' + lines[-1] if lines else ''}"
