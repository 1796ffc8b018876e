from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from lmcache_kit.contracts.launcher import LaunchedProcess, Launcher, LaunchSpec
from lmcache_kit.errors import InvalidRequestError, UnavailableError
from lmcache_kit.live.supervision import Supervisor, last_lines


class FakeProcess(LaunchedProcess):
    def __init__(self, name: str) -> None:
        self.name = name
        self.ended = asyncio.get_running_loop().create_future()
        self.stopped = 0
        self.stubborn = False

    async def wait(self) -> int:
        return int(await asyncio.shield(self.ended))

    async def stop(self, *, grace: float) -> None:
        self.stopped += 1
        if self.stubborn:
            raise OSError("no")
        if not self.ended.done():
            self.ended.set_result(-15)

    async def kill(self) -> None:
        self.ended.set_result(-9)


class FakeLauncher(Launcher):
    def __init__(self) -> None:
        self.processes: list[FakeProcess] = []
        self.closed = False

    async def launch(self, spec: LaunchSpec) -> FakeProcess:
        self.processes.append(FakeProcess(spec.name))
        return self.processes[-1]

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
async def fleet(tmp_path: Path):  # type: ignore[no-untyped-def]
    launcher = FakeLauncher()
    supervisor = Supervisor(launcher)
    for name in ("the controller", "instance a"):
        log = tmp_path / f"{name[-1]}.log"
        log.write_text("first line\nlast line\n")
        await supervisor.start(LaunchSpec(name=name, argv=[], log=log), ports="instances.a.port")
    yield launcher, supervisor
    await supervisor.stop()


async def forever() -> None:
    await asyncio.Event().wait()


async def test_work_that_ends_gives_its_result(fleet: tuple[FakeLauncher, Supervisor]) -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 42

    assert await fleet[1].run(work(), during="x") == 42


async def test_the_error_of_the_work_is_raised(fleet: tuple[FakeLauncher, Supervisor]) -> None:
    async def work() -> None:
        raise InvalidRequestError("wrong")

    with pytest.raises(InvalidRequestError, match="wrong"):
        await fleet[1].run(work(), during="x")


@pytest.mark.parametrize(
    ("status", "words"), [(-9, "was ended by SIGKILL"), (0, "ended with status 0"), (3, "ended with status 3")]
)
async def test_a_process_that_ends_ends_the_work(
    fleet: tuple[FakeLauncher, Supervisor], status: int, words: str
) -> None:
    launcher, supervisor = fleet
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await forever()
        finally:
            cancelled.set()

    asyncio.get_running_loop().call_later(0.01, launcher.processes[1].ended.set_result, status)
    with pytest.raises(UnavailableError) as caught:
        await supervisor.run(work(), during="workload serve")
    assert f"instance a {words} during workload serve" in caught.value.message
    assert "last line" in caught.value.message
    assert cancelled.is_set()


async def test_a_failed_request_is_put_down_to_the_process_that_died(
    fleet: tuple[FakeLauncher, Supervisor],
) -> None:
    launcher, supervisor = fleet

    async def work() -> None:
        asyncio.get_running_loop().call_later(0.05, launcher.processes[1].ended.set_result, -11)
        raise UnavailableError("connection reset")

    with pytest.raises(UnavailableError, match="instance a was ended by SIGSEGV"):
        await supervisor.run(work(), during="x")


async def test_a_port_in_use_names_the_setting(fleet: tuple[FakeLauncher, Supervisor], tmp_path: Path) -> None:
    launcher, supervisor = fleet
    (tmp_path / "a.log").write_text("error: port 8000 on 127.0.0.1 is in use\n")
    launcher.processes[1].ended.set_result(2)
    with pytest.raises(UnavailableError, match="in use") as caught:
        await supervisor.run(forever(), during="start-up")
    assert caught.value.hint is not None
    assert "instances.a.port" in caught.value.hint


async def test_all_are_stopped_even_when_one_resists(fleet: tuple[FakeLauncher, Supervisor]) -> None:
    launcher, supervisor = fleet
    launcher.processes[1].stubborn = True
    await supervisor.stop()
    assert [process.stopped for process in launcher.processes] == [1, 1]
    assert launcher.closed


def test_the_last_lines_of_a_long_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_bytes(b"\xff" * 100_000 + b"\n" + b"\n".join(b"line %d" % n for n in range(1000)))
    assert last_lines(log, 2) == ["line 998", "line 999"]
    assert last_lines(tmp_path / "gone") == []
