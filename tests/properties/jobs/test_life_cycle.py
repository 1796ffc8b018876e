"""Operations from the call to the last /check_finish: the controller's core and the real job tables of workers.

Between them messages are lost in either direction, come twice, and workers die, leave and start again. The oracle knows
what became of every part of every operation, so it knows what may be said of it: ``done`` only when every part is.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lmcache_kit.clock import ManualClock
from lmcache_kit.controller.core import ControllerCore
from lmcache_kit.errors import LMCacheKitError, NotFoundError, UnavailableError
from lmcache_kit.instance.store.jobs import Job, JobTable
from lmcache_kit.instance.worker.control_handlers import ControlHandlers
from lmcache_kit.messages import DeRegisterMsg, ErrorMsg, HeartbeatMsg, RegisterMsg

WORKERS = [("a", 0), ("a", 1), ("b", 0)]
TOKENS = 10
MOST_OPERATIONS = 6
workers = st.sampled_from(WORKERS)
lost = st.lists(st.sampled_from(["", "", "", "request", "answer"]), min_size=2, max_size=2)


class Broken(LMCacheKitError):
    """A reason that a job knows."""


@dataclass
class Part:
    """What became of one worker's part: ``never`` begun, ``queued``, ``running``, ``ok``, ``failed``, ``lost``."""

    state: str = "never"
    end: asyncio.Future[Exception | None] | None = None


class Process:
    """One life of a worker: its job table, and the handlers that answer the controller."""

    def __init__(self, machine: LifeCycleMachine) -> None:
        self.machine = machine
        self.table = JobTable(machine.clock, keep=3)
        self.order: list[str] = []
        self.handlers = ControlHandlers(self, health=self.health)  # type: ignore[arg-type]

    async def health(self) -> int:
        return 0

    def start_compress(self, event: str, method: str, location: str, tokens: list[int]) -> Any:
        return self.table.add(event, TOKENS, lambda job: self.work(event, job))

    async def work(self, event: str, job: Job) -> None:
        part = self.machine.parts[event]
        assert part.state == "queued"
        assert event == next(one for one in self.order if self.machine.parts[one].state == "queued"), "out of order"
        part.state = "running"
        part.end = asyncio.get_running_loop().create_future()
        error = await part.end
        if error is not None:
            raise error
        job.add(tokens=TOKENS, before=100, after=50)

    def job(self, event: str) -> Any:
        return self.table.get(event)


@dataclass
class Event:
    instance: str
    parts: list[str]
    unsure: set[str] = field(default_factory=set)
    """Parts whose worker was not heard, or will not be: they may count as failed whatever became of them."""
    said: str = ""


class LifeCycleMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.clock = ManualClock()
        self.core = ControllerCore(clock=self.clock, worker_timeout=20, max_operations=MOST_OPERATIONS)
        self.processes: dict[tuple[str, int], Process] = {}
        self.parts: dict[str, Part] = {}
        self.events: dict[str, Event] = {}
        self.told: list[tuple[tuple[str, int], Any]] = []
        for worker in WORKERS:
            self.start(worker)

    def settle_loop(self) -> None:
        async def turns() -> None:
            for _ in range(6):
                await asyncio.sleep(0)

        self.runner.run(turns())

    # --- workers ------------------------------------------------------------------------------------------------------

    def start(self, worker: tuple[str, int]) -> None:
        self.core.on_request(RegisterMsg(instance_id=worker[0], worker_id=worker[1], ip="h", port=1))
        self.processes[worker] = Process(self)

    @rule(worker=workers)
    def restart(self, worker: tuple[str, int]) -> None:
        self.die(worker)
        self.start(worker)

    @rule(worker=workers)
    def leave(self, worker: tuple[str, int]) -> None:
        self.die(worker)
        self.core.on_pushed(DeRegisterMsg(instance_id=worker[0], worker_id=worker[1], ip="h", port=1))

    def die(self, worker: tuple[str, int]) -> None:
        process = self.processes.pop(worker, None)
        for event in process.order if process else ():
            part = self.parts[event]
            self.unsure(event)
            if part.state in ("queued", "running"):
                part.state = "lost"
        if process and process.table._task is not None:
            process.table._task.cancel()
            self.settle_loop()

    def unsure(self, part: str) -> None:
        for event in self.events.values():
            if part in event.parts:
                event.unsure.add(part)

    @rule(worker=workers)
    def beat(self, worker: tuple[str, int]) -> None:
        if worker in self.processes:
            self.core.on_request(HeartbeatMsg(instance_id=worker[0], worker_id=worker[1], ip="h", port=1))

    @rule(seconds=st.sampled_from([0.5, 7.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.core.tick()

    @rule(worker=workers, how=st.sampled_from(["ok", "ok", "refuses", "breaks"]), look=st.booleans())
    def a_job_ends(self, worker: tuple[str, int], how: str, look: bool) -> None:
        for event in self.processes[worker].order if worker in self.processes else ():
            part = self.parts[event]
            if part.state == "running":
                part.state = "ok" if how == "ok" else "failed"
                part.end.set_result({"ok": None, "refuses": Broken("no room"), "breaks": ZeroDivisionError()}[how])
                self.settle_loop()
                if look:
                    self.check_one(event.partition(":")[0], ["", ""])
                return

    def tell(self, worker: tuple[str, int], message: Any, fate: str) -> Any:
        """The answer, as the controller gets it."""
        silence = UnavailableError("no answer")
        if fate == "request" or worker not in self.processes:
            return silence
        answer = self.runner.run(self.processes[worker].handlers.handle(message))
        self.settle_loop()
        return silence if fate == "answer" else answer

    # --- clients ------------------------------------------------------------------------------------------------------

    @rule(instances=st.lists(st.sampled_from("ab"), min_size=2, max_size=3))
    def compress_several(self, instances: list[str]) -> None:
        for instance in instances:
            self.compress(instance, ["", ""])

    @rule(instance=st.sampled_from("ab"), fates=lost)
    def compress_one(self, instance: str, fates: list[str]) -> None:
        self.compress(instance, fates)

    def compress(self, instance: str, fates: list[str]) -> None:
        try:
            plan = self.core.plan.compress(instance, "zstd", "cpu", [1])
        except NotFoundError:
            assert not any(worker[0] == instance for worker in self.processes)
            return
        except UnavailableError:
            assert not all(known.alive for known in self.core.registry)
            return
        event = self.events[plan.event_id] = Event(instance, [call.message.worker_event_id for call in plan.calls])
        outcomes = []
        for call, fate in zip(plan.calls, fates, strict=False):
            name = call.message.worker_event_id
            assert name not in self.parts, "an id that was used before"
            part = self.parts[name] = Part()
            if fate != "request":
                part.state = "queued"
                self.processes[call.worker.id].order.append(name)
                self.told.append((call.worker.id, call.message))
            outcomes.append(self.tell(call.worker.id, call.message, fate))
            if isinstance(outcomes[-1], UnavailableError):
                event.unsure.add(name)
        try:
            assert self.core.settle(plan, outcomes) == TOKENS
            assert not event.unsure
        except UnavailableError:
            assert event.unsure

    @precondition(lambda self: self.told)
    @rule(which=st.integers(0, 50))
    def comes_twice(self, which: int) -> None:
        """The same call again begins nothing."""
        worker, message = self.told[which % len(self.told)]
        process = self.processes.get(worker)
        if process is None or message.worker_event_id not in process.order:
            return
        try:
            process.table.get(message.worker_event_id)
        except NotFoundError:
            return  # finished long ago and forgotten
        before = process.table.counts()
        answer = self.tell(worker, message, "")
        assert isinstance(answer, ErrorMsg)
        assert answer.status == 409
        assert process.table.counts() == before

    @precondition(lambda self: self.events)
    @rule(which=st.integers(0, 50), fates=lost)
    def check(self, which: int, fates: list[str]) -> None:
        names = list(self.events)
        self.check_one(names[-1 - which % min(len(names), MOST_OPERATIONS + 1)], fates)

    def check_one(self, name: str, fates: list[str]) -> None:
        event = self.events[name]
        try:
            plan = self.core.check_finish(name)
        except NotFoundError:
            assert len(self.events) > MOST_OPERATIONS
            return
        truth = {part: self.parts[part].state for part in event.parts}
        asked = [call.message.worker_event_id for call in plan.calls]
        for part, state in truth.items():
            worker = (event.instance, int(part.rpartition(":")[2]))
            known = self.core.registry.find(*worker)
            if known is None or not known.alive:
                event.unsure.add(part)
            if state == "ok" and part not in event.unsure and part not in asked:
                assert event.said or len(event.parts) > 1, "taken for done without being asked"
        outcomes = []
        for call, fate in zip(plan.calls, fates, strict=False):
            outcomes.append(self.tell(call.worker.id, call.message, fate))
            if isinstance(outcomes[-1], ErrorMsg):
                event.unsure.add(call.message.worker_event_id)  # the worker forgot it
        silent = any(isinstance(outcome, UnavailableError) for outcome in outcomes)
        try:
            report = self.core.settle_check_finish(plan, outcomes)
        except UnavailableError:
            assert silent
            return
        self.judge(event, report, truth, silent)

    def judge(self, event: Event, report: dict[str, Any], truth: dict[str, str], silent: bool) -> None:
        status, states = report["status"], set(truth.values())
        sure = not event.unsure and not silent
        match status:
            case "done":
                assert states == {"ok"}, "done, and it is not"
                assert report["tokens_done"] == report["num_tokens"] == TOKENS
                assert report["error"] is None
                assert (report["bytes_before"], report["bytes_after"]) == (100 * len(truth), 50 * len(truth))
            case "failed":
                assert not sure or "failed" in states
                assert report["error"]
            case "running":
                assert states & {"running", "queued"} or event.unsure
                assert "ok" in states or "running" in states or "failed" in states or event.unsure
            case "queued":
                assert states <= {"queued"} or not sure
        if sure:
            assert status == self.expected(states)
        if event.said == "done":
            assert status == "done", "what is done stays done"
        event.said = status

    @staticmethod
    def expected(states: set[str]) -> str:
        if states == {"queued"}:
            return "queued"
        if states & {"queued", "running"}:
            return "running"
        return "failed" if "failed" in states else "done"

    @rule()
    def nobody_knows_other_events(self) -> None:
        with pytest.raises(NotFoundError):
            self.core.check_finish("f" * 32)

    # --- what must hold -----------------------------------------------------------------------------------------------

    @invariant()
    def one_job_at_a_time(self) -> None:
        for process in self.processes.values() if hasattr(self, "core") else ():
            states = [self.parts[event].state for event in process.order]
            counts = process.table.counts()
            assert counts["running"] == states.count("running") <= 1
            assert counts["queued"] == states.count("queued")
            assert counts["done"] + counts["failed"] <= states.count("ok") + states.count("failed")
            if counts["queued"]:
                assert counts["running"], "a job waits for nothing"
        if hasattr(self, "core"):
            assert len(self.core.operations) <= MOST_OPERATIONS

    def teardown(self) -> None:
        """Everything ends, and then there is a last word on every operation that is remembered."""
        if not hasattr(self, "core"):
            return
        for worker in list(self.processes):
            for _ in range(len(self.parts)):
                self.a_job_ends(worker, "ok", look=False)
            self.beat(worker)
        for name, event in self.events.items():
            self.check_one(name, ["", ""])
            assert event.said in ("", "done", "failed") or len(self.events) > MOST_OPERATIONS
        for worker in list(self.processes):
            self.die(worker)
        self.runner.close()


TestLifeCycle = LifeCycleMachine.TestCase
TestLifeCycle.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
