"""What a fleet says while it waits, and how it tells that a server of its own is back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from lmcache_kit.contracts.launcher import LaunchSpec
from lmcache_kit.errors import UnavailableError
from lmcache_kit.live import fleet as fleets
from lmcache_kit.live.fleet import Fleet
from lmcache_kit.live.fleet_plan import FleetPlan, PlannedInstance


class Supervisor:
    async def start(self, spec: LaunchSpec, *, ports: str) -> None:
        pass

    async def run(self, work: Coroutine[Any, Any, Any], *, during: str) -> Any:
        return await work


class Controller:
    """Answers with the workers that the test sets."""

    def __init__(self) -> None:
        self.infos: list[dict[str, Any]] = []
        self.away = False

    async def ready(self) -> bool:
        return True

    async def workers(self, instance_id: str = "all") -> dict[str, Any]:
        if self.away:
            raise UnavailableError("away")
        return {"worker_infos": [each for each in self.infos if instance_id in ("all", each["instance_id"])]}

    async def close(self) -> None:
        pass


def info(name: str, at: float, **more: Any) -> dict[str, Any]:
    return {"instance_id": name, "registration_time": at, "syncing": False, "sync_reason": None, **more}


class Instance:
    def __init__(self, url: str = "") -> None:
        self.url = url
        self.is_ready = False

    async def ready(self) -> bool:
        return self.is_ready

    async def health(self) -> dict[str, Any]:
        return {}  # as a real vLLM server

    async def model(self) -> str:
        return "m"

    async def close(self) -> None:
        pass


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Fleet, Controller, dict[str, Instance], list[str]]:
    """A fleet of the servers v and w."""

    def spec(name: str) -> LaunchSpec:
        return LaunchSpec(name=name, argv=[], log=tmp_path / "log")

    monkeypatch.setattr(fleets, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(fleets, "_TELL_SECONDS", 0.02)
    monkeypatch.setattr(fleets, "InstanceClient", Instance)
    instances = tuple(
        PlannedInstance(
            instance_id=name,
            spec=spec(name),
            url=f"http://{name}",
            peer_url="",
            locations=(),
            ports="",
            chunk_size=32,
            server=True,
        )
        for name in "vw"
    )
    lines: list[str] = []
    plan = FleetPlan(controller=spec("c"), controller_url="http://c", controller_ports="", instances=instances)
    fleet = Fleet(plan, Supervisor(), lines.append)  # type: ignore[arg-type]
    controller = Controller()
    fleet.controller = controller  # type: ignore[assignment]
    return fleet, controller, fleet._clients, lines  # type: ignore[return-value]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  (a line is written by a task of the fleet)
            await asyncio.sleep(0.001)


async def test_what_is_waited_for_is_told_until_it_is_there(made: Any) -> None:
    fleet, controller, clients, lines = made
    boot = asyncio.create_task(fleet.boot(timeout=77))

    def waiting(what: str) -> Callable[[], bool]:
        return lambda: any(line.startswith(f"waiting for {what} (") for line in lines)

    await until(waiting("instance v, instance w"))
    clients["v"].is_ready = True
    await until(waiting("instance w"))
    assert any(line.endswith("s of at most 77 s)") for line in lines)
    clients["w"].is_ready = True
    await until(waiting("every instance to join the controller"))
    assert not fleet.instances
    controller.infos = [info("v", 1), info("w", 2)]
    await boot
    assert [(handle.chunk_size, handle.server) for handle in fleet.instances.values()] == [(32, True)] * 2
    told = len(lines)
    await asyncio.sleep(0.05)
    assert len(lines) == told, "there is nothing left to wait for"


async def test_a_server_that_never_comes_is_named(made: Any) -> None:
    fleet, _, clients, _ = made
    clients["v"].is_ready = True
    with pytest.raises(UnavailableError, match=r"instance w is not ready within startup_timeout \(0\.01 s\)"):
        await fleet.boot(timeout=0.01)


@pytest.mark.parametrize(
    "state",
    [
        {"infos": []},
        {"infos": [info("v", 1)]},
        {"infos": [info("v", 2, syncing=True)]},
        {"infos": [info("v", 2, sync_reason="worker_re_registered")]},
        {"infos": [info("v", 2)], "away": True},
        {"infos": [info("v", 2)], "ready": False},
        {"infos": [info("w", 2)]},
    ],
)
async def test_a_server_is_back_once_the_controller_knows_it_anew_and_what_it_holds(made: Any, state: Any) -> None:
    fleet, controller, clients, _ = made
    controller.infos, controller.away = state["infos"], state.get("away", False)
    clients["v"].is_ready = state.get("ready", True)
    with pytest.raises(UnavailableError, match="instance v is not back"):
        await fleet.instance_back("v", joins=lambda: True, before=1.0, timeout=0.01)
    controller.infos, controller.away, clients["v"].is_ready = [info("v", 2)], False, True
    await fleet.instance_back("v", joins=lambda: True, before=1.0, timeout=30)


async def test_a_server_that_does_not_reach_the_controller_need_only_answer(made: Any) -> None:
    fleet, controller, clients, _ = made
    controller.away, clients["v"].is_ready = True, True
    await fleet.instance_back("v", joins=lambda: False, before=None, timeout=30)
    assert await fleet.registered_at("v") is None
    controller.away, controller.infos = False, [info("v", 3), info("v", 5), info("w", 9)]
    assert await fleet.registered_at("v") == 5
    assert await fleet.registered_at("x") is None
