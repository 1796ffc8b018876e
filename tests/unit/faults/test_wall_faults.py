"""Supervision of processes that faults kill, event logs of instances that come back, and what instances are told."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from lmcache_kit.clock import WallClock
from lmcache_kit.contracts.launcher import LaunchedProcess, Launcher, LaunchSpec
from lmcache_kit.errors import UnavailableError
from lmcache_kit.instance.faults import FAULTS_VARIABLE, TOKEN_VARIABLE, InstanceFaults, LinkFault
from lmcache_kit.live.cache_events import merge_cache_events, set_aside
from lmcache_kit.live.events import EventLog
from lmcache_kit.live.faults import WallFaults, new_token, with_token
from lmcache_kit.live.fleet_plan import FleetPlan, PlannedInstance
from lmcache_kit.live.supervision import Supervisor


class Process(LaunchedProcess):
    def __init__(self, spec: LaunchSpec) -> None:
        self.name = spec.name
        self.spec = spec
        self.ended = asyncio.get_running_loop().create_future()

    async def wait(self) -> int:
        return int(await asyncio.shield(self.ended))

    async def stop(self, *, grace: float) -> None:
        if not self.ended.done():
            self.ended.set_result(-15)

    async def kill(self) -> None:
        await asyncio.sleep(0)
        self.ended.set_result(-9)


class Processes(Launcher):
    def __init__(self) -> None:
        self.made: list[Process] = []

    async def launch(self, spec: LaunchSpec) -> Process:
        self.made.append(Process(spec))
        return self.made[-1]


@pytest.fixture
def plan(tmp_path: Path) -> FleetPlan:
    def spec(name: str) -> LaunchSpec:
        return LaunchSpec(name=name, argv=["x"], log=tmp_path / "log", env={"SEED": "1"})

    return FleetPlan(
        controller=spec("the controller"),
        controller_url="http://127.0.0.1:1",
        controller_ports="controller.port",
        instances=tuple(
            PlannedInstance(
                instance_id=name,
                spec=spec(f"instance {name}"),
                url=f"http://127.0.0.1:{port}",
                peer_url=f"tcp://127.0.0.1:{port}",
                locations=("memory", "disk"),
                ports=f"instances.{name}.port",
            )
            for name, port in (("a", 11), ("b", 12), ("c", 13))
        ),
    )


@pytest.fixture
async def supervised(plan: FleetPlan) -> Any:
    launcher = Processes()
    supervisor = Supervisor(launcher)
    await supervisor.start(plan.controller, ports=plan.controller_ports)
    for planned in plan.instances:
        await supervisor.start(planned.spec, ports=planned.ports)
    yield launcher, supervisor
    await supervisor.stop()


async def test_the_end_of_what_was_killed_on_purpose_is_expected(plan: FleetPlan, supervised: Any) -> None:
    launcher, supervisor = supervised

    async def work() -> str:
        await supervisor.kill("instance a")
        await supervisor.kill("the controller")
        await asyncio.sleep(0.01)
        return "done"

    assert await supervisor.run(work(), during="x") == "done"
    assert [process.ended.done() for process in launcher.made] == [True, True, False, False]
    # Later work finds them gone, too.
    assert await supervisor.run(asyncio.sleep(0.01, "more"), during="y") == "more"


async def test_the_end_of_another_one_ends_the_run_all_the_same(supervised: Any) -> None:
    launcher, supervisor = supervised

    async def work() -> None:
        await supervisor.kill("instance a")
        launcher.made[2].ended.set_result(3)
        await asyncio.Event().wait()

    with pytest.raises(UnavailableError, match="instance b ended with status 3 during x"):
        await supervisor.run(work(), during="x")


async def test_what_was_started_again_is_watched_again(plan: FleetPlan, supervised: Any) -> None:
    launcher, supervisor = supervised

    async def work() -> None:
        await supervisor.kill("instance a")
        await supervisor.restart(plan.instances[0].spec, ports="again")
        await asyncio.sleep(0.01)
        launcher.made[-1].ended.set_result(-11)
        await asyncio.Event().wait()

    with pytest.raises(UnavailableError, match="instance a was ended by SIGSEGV during x"):
        await supervisor.run(work(), during="x")
    assert len(launcher.made) == 5


async def test_everything_is_stopped_at_the_end_also_what_was_started_again(plan: FleetPlan) -> None:
    launcher = Processes()
    supervisor = Supervisor(launcher)
    await supervisor.start(plan.controller, ports="x")
    await supervisor.kill("the controller")
    await supervisor.restart(plan.controller, ports="x")
    await supervisor.stop()
    assert [process.ended.result() for process in launcher.made] == [-9, -15]


async def test_an_error_of_the_work_stays_its_own_while_something_is_down(supervised: Any) -> None:
    _, supervisor = supervised

    async def work() -> None:
        await supervisor.kill("instance a")
        raise UnavailableError("instance a cannot be reached")

    with pytest.raises(UnavailableError, match="cannot be reached"):
        await supervisor.run(work(), during="x")


def test_instances_get_the_token_and_the_controller_does_not(plan: FleetPlan) -> None:
    token = new_token()
    assert len(token) >= 16
    assert token != new_token()
    made = with_token(plan, token)
    assert [planned.spec.env for planned in made.instances] == [{"SEED": "1", TOKEN_VARIABLE: token}] * 3
    assert made.controller == plan.controller
    assert all(TOKEN_VARIABLE not in planned.spec.env for planned in plan.instances)


class Fleet:
    def __init__(self) -> None:
        self.waited: list[Any] = []

    async def instance_back(self, instance_id: str, *, joins: Any, before: Any, timeout: float) -> None:
        self.waited.append((instance_id, joins()))

    async def controller_back(self, instances: Any, *, timeout: float) -> None:
        self.waited.append(instances())


@pytest.fixture
async def target(plan: FleetPlan, supervised: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The target, and by instance what it was told last."""
    told: dict[str, InstanceFaults] = {}

    async def put_faults(self: Any, faults: InstanceFaults) -> None:
        told["abc"[int(self.url[-1]) - 1]] = faults

    monkeypatch.setattr("lmcache_kit.live.faults._FaultClient.put_faults", put_faults)
    fleet: Any = Fleet()
    logs = {name: tmp_path / f"{name}.events.jsonl" for name in "abc"}
    made = WallFaults(plan, "t" * 16, supervised[1], fleet, logs, timeout=1.0)
    yield made, told, fleet
    await made.close()


async def test_both_ends_of_a_link_are_told_and_nobody_else(target: Any) -> None:
    faults, told, _ = target
    await faults.set_link("a", "b", 100.0, None)
    await faults.cut("b", "c")
    assert told == {
        "a": InstanceFaults({"tcp://127.0.0.1:12": LinkFault(100.0)}),
        "b": InstanceFaults({"tcp://127.0.0.1:11": LinkFault(100.0), "tcp://127.0.0.1:13": LinkFault(cut=True)}),
        "c": InstanceFaults({"tcp://127.0.0.1:12": LinkFault(cut=True)}),
    }
    await faults.cut("b", "a")
    assert told["a"].links == {"tcp://127.0.0.1:12": LinkFault(100.0, None, True)}
    await faults.set_link("b", "a", None, None)
    await faults.mend("a", "b")
    await faults.mend("c", "b")
    assert all(each == InstanceFaults() for each in told.values())


async def test_what_is_down_is_told_when_it_starts(target: Any, supervised: Any) -> None:
    faults, told, fleet = target
    await faults.fill_tier("a", "disk")
    await faults.cut("a", "controller")
    await faults.kill("a")
    told.clear()
    await faults.set_link("a", "c", None, 0.5)
    await faults.fill_tier("a", "memory")
    assert set(told) == {"c"}
    await faults.restart("a")
    spec = supervised[0].made[-1].spec
    expected = {
        "links": {"tcp://127.0.0.1:13": {"bandwidth": None, "latency": 0.5, "cut": False}},
        "controller_cut": True,
        "full_tiers": ["disk", "memory"],
    }
    assert json.loads(spec.env[FAULTS_VARIABLE]) == expected
    assert fleet.waited == [("a", False)], "it is parted from the controller, and cannot join it"
    await faults.mend("a", "controller")
    await faults.empty_tier("a", "disk")
    assert (told["a"].controller_cut, told["a"].full_tiers) == (False, ["memory"])


async def test_who_is_waited_for(target: Any) -> None:
    faults, _, fleet = target
    await faults.kill("controller")
    await faults.kill("a")
    await faults.kill("b")
    await faults.restart("a")
    await faults.cut("c", "controller")
    await faults.restart("controller")
    await faults.restart("b")
    assert fleet.waited == [("a", False), {"a"}, ("b", True)]


def test_the_events_of_every_life_of_an_instance_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "a.events.jsonl"
    set_aside(log)  # it was killed before it wrote anything
    with EventLog(tmp_path / "events.jsonl", WallClock()) as events:
        events.write("fleet_ready")
    for life in range(3):
        lines = [json.dumps({"time": events.start + life + n / 10, "event": "cache_hit", "key": life}) for n in (1, 2)]
        log.write_text(lines[0] + "\n" + lines[1] + ("\n" if life == 2 else "")[:1])
        if life < 2:
            set_aside(log)
    merge_cache_events(tmp_path / "events.jsonl", {"a": log}, start=events.start)
    merged = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    # The half lines of the first two lives are left out.
    assert [event.get("key") for event in merged] == [None, 0, 1, 2, 2]
    assert {event["instance"] for event in merged[1:]} == {"a"}
