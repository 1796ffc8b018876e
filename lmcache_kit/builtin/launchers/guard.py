"""Ends what a runner started when the runner is gone: a process of its own, since a killed runner cannot tidy up.

The kernel ends the processes of a runner that dies (see the module ``child``), but not what they have started: a server
that computes in processes of its own would leave those behind. So the runner tells this process which process groups
there are, in lines ``+ID`` and ``-ID`` on its standard input, and when that ends, the groups that are left are killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["LINGER_SECONDS", "POLL_SECONDS", "Guard", "group_lives", "kill_all_but_trackers", "kill_group", "main"]

LINGER_SECONDS = 2.0
POLL_SECONDS = 0.02
_TRACKER = b"multiprocessing.resource_tracker"


class Guard:
    """The runner's side."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls) -> Guard:
        """Start the process. Raises OSError when that fails."""
        return cls(
            await asyncio.create_subprocess_exec(
                # By its file, and without site-packages: it needs nothing and is there in some milliseconds.
                *(sys.executable, "-I", "-S", __file__),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
                start_new_session=True,
            )
        )

    async def watch(self, group: int) -> None:
        """End this process group, should the runner die."""
        await self._tell(f"+{group}")

    async def forget(self, group: int) -> None:
        """The group has ended; its number may soon be somebody else's."""
        await self._tell(f"-{group}")

    async def close(self) -> None:
        """End the process, and with it the groups that are still watched."""
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):
            self._process.stdin.close()
        await self._process.wait()

    async def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        # Without it a run goes on; only a runner that is killed would leave something behind.
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(f"{line}\n".encode())
            await self._process.stdin.drain()


def kill_group(group: int) -> None:
    """End every process of a group at once."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def kill_all_but_trackers(group: int) -> None:
    """End every process of a group but Python's resource trackers, which end by themselves a moment later.

    What of shared memory a killed process leaves behind stays in the machine's memory for good, unless its tracker
    lives long enough to remove it. Does nothing where there is no ``/proc``.
    """
    for pid in _members(group):
        with contextlib.suppress(OSError):
            if _TRACKER not in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)


def group_lives(group: int) -> bool:
    """Whether a process of this group is running. False where there is no ``/proc``."""
    return bool(_members(group))


def _members(group: int) -> list[int]:
    """Processes of a group, without those that have ended and that nobody has asked for their status."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # The name, in parentheses, may hold anything; behind it stand the state, the parent and the group.
            state, _, number = (entry / "stat").read_bytes().rpartition(b")")[2].split()[:3]
            if int(number) == group and state != b"Z":
                found.append(int(entry.name))
    return found


def main() -> None:
    """Read which groups there are until the runner is gone, then kill those that are left."""
    groups: set[int] = set()
    for line in sys.stdin:
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    for group in groups:
        kill_all_but_trackers(group)
    for _ in range(int(LINGER_SECONDS / POLL_SECONDS)):
        if not any(map(group_lives, groups)):
            return
        time.sleep(POLL_SECONDS)
    for group in groups:
        kill_group(group)


if __name__ == "__main__":
    main()
