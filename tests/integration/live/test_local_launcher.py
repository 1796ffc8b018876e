"""The local launcher ends what its processes have started, however the processes themselves end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from lmcache_kit.builtin.launchers import guard
from lmcache_kit.builtin.launchers.guard import Guard
from lmcache_kit.builtin.launchers.local import LocalLauncher, LocalProcess

DEADLINE = 30.0
PARENT = """
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print('ready', flush=True); time.sleep(600)"], stdout=subprocess.PIPE)
child.stdout.readline()
{extra}
print(child.pid, flush=True)
time.sleep(600)
"""


def lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110  (other processes)
            await asyncio.sleep(0.01)


@pytest.fixture
async def launched() -> AsyncIterator[Callable]:
    """Starts a process that has a child which ignores SIGTERM; gives the process and the child's id."""
    made: list[LocalProcess] = []

    async def start(extra: str = "", gone: Callable | None = None) -> tuple[LocalProcess, int]:
        async def nobody(pid: int) -> None:
            pass

        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PARENT.format(extra=extra)), stdout=subprocess.PIPE, start_new_session=True
        )
        assert process.stdout is not None
        child = int(await process.stdout.readline())
        made.append(LocalProcess("it", process, gone or nobody))
        return made[-1], child

    yield start
    for process in made:
        await process.kill()


async def test_a_process_that_ends_in_order_leaves_no_child(
    launched: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "LINGER_SECONDS", 0.05)
    process, child = await launched()
    await process.stop(grace=DEADLINE)
    assert await process.wait() == -signal.SIGTERM
    await until(lambda: not lives(child))


async def test_a_child_may_tidy_up_behind_a_process_that_ended_in_order(
    launched: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "LINGER_SECONDS", DEADLINE)
    left = tmp_path / "shared memory"
    left.write_text("")
    tracker = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('x', flush=True); "
        "sys.stdin.read(); time.sleep(0.2); os.unlink(sys.argv[1])"
    )
    # As multiprocessing's resource tracker: it reads until its process is gone, and then removes what is left.
    process, child = await launched(
        "os.kill(child.pid, signal.SIGKILL); child.wait()\n"
        f"child = subprocess.Popen([sys.executable, '-c', {tracker!r}, {str(left)!r}], stdin=subprocess.PIPE, "
        "stdout=subprocess.PIPE)\nchild.stdout.readline()"
    )
    await process.stop(grace=DEADLINE)
    assert not left.exists()
    assert not lives(child)


async def test_a_process_that_ignores_the_signal_is_killed_with_its_child(launched: Callable) -> None:
    process, child = await launched("signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    await process.stop(grace=0.05)
    assert await process.wait() == -signal.SIGKILL
    await until(lambda: not lives(child))


async def test_the_child_of_a_process_that_died_ends_when_it_is_stopped(launched: Callable) -> None:
    told: list[int] = []

    async def gone(pid: int) -> None:
        told.append(pid)

    process, child = await launched(gone=gone)
    os.kill(process.pid, signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL
    assert lives(child)
    await process.stop(grace=DEADLINE)
    await until(lambda: not lives(child))
    assert told == [process.pid], "its number may be somebody else's from now on"


SHARED = """
from multiprocessing.shared_memory import SharedMemory
held = SharedMemory(create=True, size=4096)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(held.name, flush=True)
"""


@pytest.mark.parametrize("by", ["kill", "guard"])
async def test_what_is_killed_leaves_no_shared_memory(by: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT.format(extra=SHARED)), stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    shared = Path("/dev/shm") / (await process.stdout.readline()).decode().strip()
    child = int(await process.stdout.readline())
    assert shared.exists()

    async def gone(pid: int) -> None:
        pass

    made = LocalProcess("it", process, gone)
    if by == "kill":
        await made.kill()
    else:
        watching = await Guard.start()
        await watching.watch(process.pid)
        await watching.close()
        await process.wait()
    assert not shared.exists()
    assert not guard.group_lives(process.pid)
    assert not lives(child)


async def test_the_guard_ends_the_groups_that_it_watches_once_its_owner_is_gone(launched: Callable) -> None:
    (watched, child), (forgotten, other) = await launched(), await launched()
    made = await Guard.start()
    for process in (watched, forgotten):
        await made.watch(process.pid)
    await made.forget(forgotten.pid)
    await made.close()
    await until(lambda: not lives(child) and not lives(watched.pid))
    assert lives(other)
    assert lives(forgotten.pid)


async def test_a_guard_that_died_does_not_disturb_a_run(launched: Callable) -> None:
    process, child = await launched()
    made = await Guard.start()
    made._process.kill()
    await made._process.wait()
    for _ in range(3):
        await made.watch(process.pid)
        await made.forget(process.pid)
    await made.close()
    assert lives(child)


def test_the_guard_knows_what_the_runner_knew(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[tuple[int, int]] = []

    def killpg(group: int, number: int) -> None:
        killed.append((group, number))
        if group == 4:
            raise ProcessLookupError

    monkeypatch.setattr(guard, "kill_all_but_trackers", lambda group: None)
    monkeypatch.setattr(guard, "LINGER_SECONDS", 0.0)
    monkeypatch.setattr(guard.os, "killpg", killpg)
    monkeypatch.setattr(guard.sys, "stdin", iter(["+3\n", "+4\n", "+5\n", "-3\n", "-9\n", "+3\n", "-5\n"]))
    guard.main()
    assert sorted(killed) == [(3, signal.SIGKILL), (4, signal.SIGKILL)]


async def test_a_run_without_processes_has_no_guard() -> None:
    await LocalLauncher().close()
