"""A worker's reports and the controller's core, in virtual time, with a connection that breaks and processes that die.

Whatever happened, once the worker and the controller have been connected for a while, the index holds exactly what the
worker does.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from lmcache_kit.clock import Clock
from lmcache_kit.controller.core import ControllerCore
from lmcache_kit.errors import LMCacheKitError, UnavailableError
from lmcache_kit.instance.worker.reporting import Reporting
from lmcache_kit.messages import HeartbeatMsg, RegisterMsg, decode_worker_reply, encode
from lmcache_kit.sim.loop import VirtualClock, VirtualLoop

LOCATIONS = ["cpu", "disk"]
WHO: dict[str, Any] = {"instance_id": "a", "worker_id": 0}
LATENCY = 0.004


class World:
    def __init__(self, loop: VirtualLoop, limit: int) -> None:
        self.loop = loop
        self.clock: Clock = VirtualClock(loop)
        self.limit = limit
        self.connected = asyncio.Event()
        self.connected.set()
        self.way: deque[bytes] = deque()
        self.tasks: list[asyncio.Task[None]] = []
        self.start_controller()
        self.start_worker()

    def start_controller(self) -> None:
        self.core = ControllerCore(clock=self.clock, worker_timeout=5.0, sync_timeout=2.0)

    def start_worker(self) -> None:
        self.holds: dict[str, set[int]] = {location: set() for location in LOCATIONS}
        self.reporting = Reporting(
            "a",
            0,
            snapshot=lambda: {location: sorted(keys) for location, keys in self.holds.items()},
            request=self.request,
            push=self,  # type: ignore[arg-type]
            pushed_only=lambda: False,
            limit=self.limit,
        )
        self.tasks = [
            asyncio.create_task(self.for_ever(self.reporting.run_syncs)),
            asyncio.create_task(self.for_ever(self.reporting.run_changes)),
            asyncio.create_task(self.beat()),
        ]

    async def stop_worker(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.way.clear()

    @staticmethod
    async def for_ever(work: Any) -> None:
        while True:
            try:
                await work()
            except LMCacheKitError:
                await asyncio.sleep(0.1)

    # --- the link -----------------------------------------------------------------------------------------------------

    async def send(self, messages: Sequence[Any]) -> None:
        await self.connected.wait()
        for message in messages:
            self.way.append(encode(message))
            self.loop.call_later(LATENCY, self.arrive)

    def arrive(self) -> None:
        if self.way:
            self.core.receive_pushed(self.way.popleft())

    async def request(self, message: Any) -> Any:
        await asyncio.sleep(LATENCY)
        if not self.connected.is_set():
            raise UnavailableError("no controller")
        answer = decode_worker_reply(self.core.receive_request(encode(message)))
        await asyncio.sleep(LATENCY)
        return answer

    async def beat(self) -> None:
        await self.for_ever(self.join)

    async def join(self) -> None:
        await self.request(RegisterMsg(**WHO, ip="h", port=1, locations=LOCATIONS))
        self.reporting.joined()
        while True:
            await asyncio.sleep(1.0)
            answer = await self.request(HeartbeatMsg(**WHO, ip="h", port=1, locations=LOCATIONS))
            self.core.tick()
            for command in getattr(answer, "commands", ()):
                self.reporting.asked(str(command.reason))

    # --- what happens -------------------------------------------------------------------------------------------------

    async def act(self, action: tuple[Any, ...]) -> None:
        match action:
            case "admit" | "evict" as op, location, key:
                self.change(op, location, key)
            case "flood", location, count:
                for key in range(100, 100 + count):
                    self.change("admit", location, key)
            case "wait", seconds:
                await asyncio.sleep(seconds)
            case "break", seconds:
                # What is on its way is lost with the connection; the worker sees a new one afterwards.
                self.connected.clear()
                self.way.clear()
                await asyncio.sleep(seconds)
                self.reconnect()
            case "controller", seconds:
                self.connected.clear()
                self.way.clear()
                await asyncio.sleep(seconds)
                self.start_controller()
                self.reconnect()
            case "worker", seconds:
                await self.stop_worker()
                await asyncio.sleep(seconds)
                self.start_worker()

    def reconnect(self) -> None:
        """A worker registers anew on every connection."""
        self.connected.set()
        self.tasks.pop().cancel()
        self.tasks.append(asyncio.create_task(self.beat()))

    def change(self, op: Any, location: str, key: int) -> None:
        held = self.holds[location]
        if (op == "admit") != (key in held):
            (held.add if op == "admit" else held.discard)(key)
            self.reporting.changes.add(op, location, key)

    def indexed(self) -> dict[str, set[int]]:
        worker = self.core.registry.find("a", 0)
        slots = {} if worker is None else worker.slots
        return {
            place: set(self.core.contents.index.keys(slots[place])) if place in slots else set() for place in LOCATIONS
        }


SECONDS = st.sampled_from([0.0, 0.001, 0.003, 0.006, 0.02, 0.3, 1.1, 7.0])
PLACES = st.sampled_from(LOCATIONS)
CHANGES = st.tuples(st.sampled_from(["admit", "admit", "evict"]), PLACES, st.integers(0, 4))
ACTIONS = st.one_of(
    CHANGES,
    CHANGES,
    st.tuples(st.just("wait"), SECONDS),
    st.tuples(st.just("wait"), SECONDS),
    st.tuples(st.sampled_from(["break", "controller", "worker"]), SECONDS),
    st.tuples(st.just("flood"), PLACES, st.integers(1, 40)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ACTIONS, max_size=40), st.sampled_from([3, 20, 1000]))
def test_the_index_becomes_what_the_worker_holds(actions: list[tuple[Any, ...]], limit: int) -> None:
    loop = VirtualLoop()

    async def run() -> None:
        world = World(loop, limit)
        for action in actions:
            await world.act(action)
        await asyncio.sleep(30)
        assert world.indexed() == world.holds
        assert world.reporting.synced.is_set()
        # And single changes are enough from then on.
        syncs = world.reporting.full_syncs
        for location in LOCATIONS:
            world.change("admit", location, 7)
        await asyncio.sleep(3)
        assert world.indexed() == world.holds
        assert world.reporting.full_syncs == syncs
        await world.stop_worker()

    loop.run(run())
