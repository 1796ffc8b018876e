"""The controller in virtual time: its core and handlers as they are, with calls and reports that take a link."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from lmcache_kit.controller.calls import WorkerCalls
from lmcache_kit.controller.core import ControllerCore
from lmcache_kit.controller.handlers import Handlers
from lmcache_kit.controller.planning import Call, Outcome
from lmcache_kit.errors import UnavailableError
from lmcache_kit.messages import BatchedKVOperationMsg, HeartbeatMsg, HeartbeatRetMsg, RegisterMsg
from lmcache_kit.sim.instance import SimInstance
from lmcache_kit.sim.loop import VirtualClock, VirtualLoop
from lmcache_kit.sim.member import Member
from lmcache_kit.sim.network import CONTROLLER, Network

__all__ = ["SimController"]

_ALL = 2**62
_TICK_SECONDS = 1.0


class _Calls(WorkerCalls):
    """Calls of plans, answered by the handlers that answer them in a worker."""

    def __init__(self, members: Mapping[str, Member], network: Network) -> None:
        self._members = members
        self._network = network

    async def make(self, calls: tuple[Call, ...]) -> list[Outcome]:
        return [await self._one(call) for call in calls]

    async def _one(self, call: Call) -> Outcome:
        name = call.worker.instance_id
        member = self._members[name]
        if not member.instance.alive or not self._network.whole(CONTROLLER, name):
            return UnavailableError(f"worker {call.worker.name} cannot be reached")
        return await member.handlers.handle(call.message)


class SimController:
    """See the module.

    Args:
        loop: virtual time.
        network: the links to instances.
        members: the instances by name; more may come.
    """

    def __init__(self, loop: VirtualLoop, network: Network, members: Mapping[str, Member]) -> None:
        self._loop = loop
        self._network = network
        self._members = members
        self._up = True
        self._numbers = itertools.count(1)
        self._begin()

    def _begin(self) -> None:
        self.core = ControllerCore(clock=VirtualClock(self._loop), new_event_id=self._new_event_id)
        self._handlers = Handlers(self.core, _Calls(self._members, self._network))

    def _new_event_id(self) -> str:
        return f"{next(self._numbers):032x}"

    def handlers(self) -> Handlers:
        """Raises UnavailableError while the controller is down."""
        if not self._up:
            raise UnavailableError("the controller cannot be reached")
        return self._handlers

    def join(self, member: Member) -> None:
        """Register an instance, and take what it holds."""
        if not self._reaches(member):
            member.out_of_step = True
            return
        self.core.on_request(RegisterMsg(**member.identity()))
        member.announce_all()
        self.reported(member.instance)

    def reported(self, instance: SimInstance) -> None:
        """Changes of an instance arrive."""
        member = self._members[instance.instance_id]
        batches = instance.changes.take(_ALL)
        if not self._reaches(member):
            member.out_of_step = True
            return
        for location, operations in batches:
            self.core.on_pushed(
                BatchedKVOperationMsg(
                    instance_id=instance.instance_id, worker_id=0, location=location, operations=operations
                )
            )

    def _reaches(self, member: Member) -> bool:
        return self._up and self._network.whole(CONTROLLER, member.instance.instance_id)

    # --- with faults -------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Begin heartbeats and the controller's own upkeep, which matter only where something fails."""
        for member in self._members.values():
            if member.config.controller is not None and member.config.controller.heartbeat_seconds:
                self._loop.upkeep(member.config.controller.first_heartbeat_seconds, self._beat, member)
        self._loop.upkeep(_TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        while self._up and self.core.tick():
            pass
        self._loop.upkeep(_TICK_SECONDS, self._tick)

    def _beat(self, member: Member) -> None:
        assert member.config.controller is not None
        self._loop.upkeep(member.config.controller.heartbeat_seconds, self._beat, member)
        if not member.instance.alive or not self._reaches(member):
            return
        name = member.instance.instance_id
        known = self.core.registry.find(name, 0) is not None
        reply = self.core.on_request(HeartbeatMsg(**member.identity()))
        if not known or member.out_of_step or (isinstance(reply, HeartbeatRetMsg) and reply.commands):
            self.join(member)

    def kill(self) -> None:
        """Everything that the controller knew is lost."""
        self._up = False

    def restart(self) -> None:
        """It knows what instances tell it, which notice at once that their connections were made anew."""
        self._begin()
        self._up = True
        for member in self._members.values():
            if member.instance.alive:
                self.join(member)
