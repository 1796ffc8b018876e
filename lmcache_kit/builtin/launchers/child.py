"""``python -m lmcache_kit.builtin.launchers.child PARENT_PID ARGUMENTS...``: lmcache-kit, ending with its parent.

A runner that is killed with SIGKILL cannot tidy up. On Linux the kernel is asked to kill this process when the parent
dies; elsewhere a thread watches for it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

__all__ = ["end_with_parent", "main"]

_PR_SET_PDEATHSIG = 1
_WATCH_SECONDS = 0.5


def end_with_parent(parent: int) -> None:
    """Arrange that this process is killed when ``parent`` dies, and end now when it already has."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    else:
        threading.Thread(target=_watch, args=(parent,), name="parent watch", daemon=True).start()
    # The parent may have died before the arrangement stood.
    if os.getppid() != parent:
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    """Run the command line that follows the parent's process id."""
    end_with_parent(int(sys.argv[1]))
    from lmcache_kit.cli import main as lmcache_kit

    return lmcache_kit(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
