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

__all__ = ["Guard", "main"]


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


def main() -> None:
    """Read which groups there are until the runner is gone, then kill those that are left."""
    groups: set[int] = set()
    for line in sys.stdin:
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
