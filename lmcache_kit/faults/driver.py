"""Carries a fault plan out on a fleet, at its times. Runs on any event loop, also one whose time is virtual."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from lmcache_kit.clock import Clock
from lmcache_kit.errors import ConfigError, LMCacheKitError
from lmcache_kit.faults.schedule import FaultAction, FaultPlan, FaultTarget
from lmcache_kit.faults.state import FaultState

__all__ = ["FaultDriver"]

T = TypeVar("T")

Emit = Callable[..., None]


class FaultDriver:
    """Does to a fleet what a plan says.

    Actions with a common target wait for each other, so that nothing is killed while it still starts; others do not.

    Args:
        plan: what to do.
        target: the fleet.
        clock: the clock of the event loop's time.
        emit: takes ``event`` and facts of each begin and end: an event ``fault`` with ``what``, ``target``, ``action``.
    """

    def __init__(self, plan: FaultPlan, target: FaultTarget, *, clock: Clock, emit: Emit) -> None:
        self._plan = plan
        self._target = target
        self._clock = clock
        self._emit = emit
        self._state = FaultState()
        self._waiting: list[asyncio.Task[None]] = []
        self._doing: set[asyncio.Task[None]] = set()
        self._last: dict[str, asyncio.Task[None]] = {}
        self._reached: set[tuple[int, str]] = set()
        self._failure: asyncio.Future[None] | None = None

    @property
    def down(self) -> frozenset[str]:
        """What was killed and not restarted."""
        return frozenset(self._state.down)

    async def start(self, after: str | None = None) -> None:
        """Begin with the actions that count from ``after``.

        Returns once those of time 0 are done, so that what follows finds them in force; the others count from then.
        Raises what those of time 0 raise.
        """
        actions = self._plan.actions(after)
        now = [self._do(action) for action in actions if action.at == 0]
        if now:
            await asyncio.gather(*now)
        begin = self._clock.now()
        later = [action for action in actions if action.at > 0]
        if later:
            self._waiting.append(asyncio.create_task(self._play(begin, later), name=f"faults after {after or 'boot'}"))
            self._waiting[-1].add_done_callback(self._finished)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, unless an action fails first: then it is cancelled and that error raised."""
        task = asyncio.ensure_future(work)
        failure = self._failed()
        either: set[asyncio.Future[Any]] = {task, failure}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if failure.done():
                failure.result()
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> list[FaultAction]:
        """Stop; the begins that the run was too short for. Faults in force stay as they are. Idempotent."""
        tasks = [*self._waiting, *self._doing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._waiting.clear()
        if self._failure is not None and self._failure.done():
            self._failure.exception()
        origins = dict.fromkeys(fault.after for fault in self._plan.faults)
        return [
            action
            for after in origins
            for action in self._plan.actions(after)
            if action.step == "begin" and (action.fault.position, action.step) not in self._reached
        ]

    async def _play(self, begin: float, actions: list[FaultAction]) -> None:
        for action in actions:
            await asyncio.sleep(max(0.0, begin + action.at - self._clock.now()))
            self._do(action)

    def _do(self, action: FaultAction) -> asyncio.Task[None]:
        """Begin an action; those before it with a common target are waited for in its task."""
        fault = action.fault
        before = dict.fromkeys(self._last[each] for each in fault.target if each in self._last)  # in their order
        task = asyncio.create_task(self._carry_out(action, list(before)), name=f"{fault.kind} {fault.name}")
        self._doing.add(task)
        task.add_done_callback(self._finished)
        for each in fault.target:
            self._last[each] = task
        return task

    async def _carry_out(self, action: FaultAction, before: list[asyncio.Task[None]]) -> None:
        fault = action.fault
        for task in before:
            await asyncio.wait({task})
        self._reached.add((fault.position, action.step))
        try:
            self._state.apply(action)
        except ConfigError as error:
            raise ConfigError(f"faults.{fault.position}: {error.message} when its time came", hint=error.hint) from None
        try:
            if fault.kind == "restart":  # it takes a while: its begin and its end are told
                self._tell(action, "begin")
                await self._act(action)
                self._tell(action, "end")
            else:
                await self._act(action)
                self._tell(action, action.step)
        except LMCacheKitError as error:
            error.message = f"faults.{fault.position}: {fault.kind} of {fault.name} failed: {error.message}"
            error.args = (error.message,)
            raise

    async def _act(self, action: FaultAction) -> None:
        fault, target = action.fault, self._target
        begins = action.step == "begin"
        if fault.kind == "kill":
            await target.kill(fault.target[0])
        elif fault.kind == "restart":
            await target.restart(fault.target[0])
        elif fault.kind == "slow_link":
            a, b = fault.target
            await target.set_link(a, b, fault.bandwidth if begins else None, fault.latency if begins else None)
        elif fault.kind == "partition":
            a, b = fault.target
            await (target.cut(a, b) if begins else target.mend(a, b))
        else:
            assert fault.location is not None
            change = target.fill_tier if begins else target.empty_tier
            await change(fault.target[0], fault.location)

    def _tell(self, action: FaultAction, step: str) -> None:
        fault = action.fault
        facts: dict[str, Any] = {"what": fault.kind, "target": "-".join(fault.target), "action": step}
        for name in ("location", "bandwidth", "latency"):
            if getattr(fault, name) is not None:
                facts[name] = getattr(fault, name)
        self._emit("fault", **facts)

    def _failed(self) -> asyncio.Future[None]:
        if self._failure is None:
            self._failure = asyncio.get_running_loop().create_future()
        return self._failure

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._doing.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        failure = self._failed()
        if not failure.done():
            failure.set_exception(error)
