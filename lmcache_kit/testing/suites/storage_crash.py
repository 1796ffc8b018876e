"""A process that is killed while it writes."""

from __future__ import annotations

import os
import select
import signal
import warnings
from collections.abc import Callable

__all__ = ["CAN_FORK", "kill_while"]

CAN_FORK = hasattr(os, "fork")
_PATIENCE_SECONDS = 30.0


def kill_while(work: Callable[[Callable[[bytes], None]], None], *, reports: int, seconds: float) -> list[bytes]:
    """Run ``work`` in a process of its own and kill it (SIGKILL) in the middle.

    Args:
        work: gets a function that reports up to 64 bytes; should never end by itself.
        reports: kill after so many reports...
        seconds: ...and so many seconds more.

    Returns what was reported. Raises AssertionError when ``work`` ends, or reports too little in 30 seconds.

    The process is a fork: a plugin's record need not be importable by name.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Newer Pythons, and jax where somebody imported it, warn of forks beside other threads. The child uses nothing
        # that those may have locked: it opens a backend of its own and writes.
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            work(lambda report: _write(writing, report))
        except BaseException as error:
            os.write(writing, f"!{type(error).__name__}: {error}"[:60].encode().ljust(64))
        finally:
            os._exit(0)
    os.close(writing)
    try:
        found = _read(reading, reports)
        select.select([], [], [], seconds)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    try:
        while rest := os.read(reading, 64):
            found.append(rest.rstrip())
    finally:
        os.close(reading)
    failures = [report[1:].decode() for report in found if report.startswith(b"!")]
    assert not failures, f"writing in another process failed: {failures[0]}"
    assert len(found) >= reports, f"the writing process ended after {len(found)} writes"
    return found


def _write(fd: int, report: bytes) -> None:
    os.write(fd, report.ljust(64))  # a write of so few bytes to a pipe is never split


def _read(fd: int, count: int) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < count:
        ready, _, _ = select.select([fd], [], [], _PATIENCE_SECONDS)
        assert ready, f"another process wrote {len(found)} objects in {_PATIENCE_SECONDS:.0f} seconds, want {count}"
        report = os.read(fd, 64)
        if not report:
            break
        found.append(report.rstrip())
    return found
