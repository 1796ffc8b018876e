"""A running fleet: boot in order, wait until everything serves, hand out clients."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from lmcache_kit.client import ControllerClient, InstanceClient
from lmcache_kit.contracts.workload import InstanceHandle
from lmcache_kit.errors import LMCacheKitError, UnavailableError
from lmcache_kit.live.fleet_plan import FleetPlan
from lmcache_kit.live.supervision import Supervisor
from lmcache_kit.units import format_count

__all__ = ["Fleet"]

_POLL_SECONDS = 0.05


class Fleet:
    """Clients of a controller and of instances that were started from a plan.

    Args:
        plan: what to start.
        supervisor: starts and watches the processes; stopping them is its owner's business.
        progress: shows one line to the user.
    """

    def __init__(self, plan: FleetPlan, supervisor: Supervisor, progress: Callable[[str], None]) -> None:
        self._plan = plan
        self._supervisor = supervisor
        self._progress = progress
        self.controller = ControllerClient(plan.controller_url)
        self.instances: dict[str, InstanceHandle] = {}
        self._clients = {planned.instance_id: InstanceClient(planned.url) for planned in plan.instances}

    async def boot(self, *, timeout: float) -> None:
        """Start everything and wait until it serves. Raises UnavailableError naming what is not ready in time."""
        deadline = asyncio.get_running_loop().time() + timeout
        self._progress(f"starting a controller and {format_count(len(self._plan.instances), 'instances')}")
        # Instances load their model meanwhile; they join the controller whenever it is there.
        await self._supervisor.start(self._plan.controller, ports=self._plan.controller_ports)
        for planned in self._plan.instances:
            await self._supervisor.start(planned.spec, ports=planned.ports)
        await self._supervisor.run(self._until_ready(deadline, timeout), during="start-up")

    async def close(self) -> None:
        """Close the clients."""
        for client in (self.controller, *self._clients.values()):
            await client.close()

    async def _until_ready(self, deadline: float, timeout: float) -> None:
        late = f"within startup_timeout ({timeout:g} s)"
        await self._poll(self.controller.ready, deadline, f"the controller is not ready {late}")
        self._progress(f"controller ready at {self._plan.controller_url}")
        await asyncio.gather(
            *(self._instance_ready(planned.instance_id, deadline, late) for planned in self._plan.instances)
        )
        await self._poll(self._all_registered, deadline, f"not every instance has joined the controller {late}")
        for planned in self._plan.instances:
            client = self._clients[planned.instance_id]
            self.instances[planned.instance_id] = InstanceHandle(
                instance_id=planned.instance_id,
                url=planned.url,
                client=client,
                locations=planned.locations,
                model=await client.model(),
            )

    async def _instance_ready(self, instance_id: str, deadline: float, late: str) -> None:
        client = self._clients[instance_id]
        await self._poll(client.ready, deadline, f"instance {instance_id} is not ready {late}")
        self._progress(f"instance {instance_id} ready at {client.url}")

    async def _all_registered(self) -> bool:
        return await self._registered(set(self._clients))

    async def _registered(self, instances: set[str]) -> bool:
        try:
            infos = (await self.controller.workers())["worker_infos"]
        except LMCacheKitError:
            return False
        return instances <= {info["instance_id"] for info in infos}

    async def instance_back(self, instance_id: str, *, joins: Callable[[], bool], timeout: float) -> None:
        """Wait until an instance that was started again serves and, while it ``joins`` the controller, is known to it.

        Raises UnavailableError when that takes longer than ``timeout`` seconds.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        await self._poll(
            lambda: self._told_everything({instance_id}) if joins() else self._clients[instance_id].ready(),
            deadline,
            f"instance {instance_id} is not back within startup_timeout ({timeout:g} s)",
        )

    async def controller_back(self, instances: Callable[[], set[str]], *, timeout: float) -> None:
        """Wait until a controller that was started again serves and knows ``instances`` and what they hold.

        Raises UnavailableError when that takes longer than ``timeout`` seconds.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        late = f"within startup_timeout ({timeout:g} s)"
        await self._poll(self.controller.ready, deadline, f"the controller is not back {late}")
        await self._poll(
            lambda: self._all_known(instances()), deadline, f"not every instance has joined the controller again {late}"
        )

    async def _all_known(self, instances: set[str]) -> bool:
        return await self._registered(instances) and await self._told_everything(instances)

    async def _told_everything(self, instances: set[str]) -> bool:
        """Whether the instances have joined the controller and told it what they hold, as far as they know."""
        try:
            workers = [(await self._clients[name].health())["worker"] for name in instances]
        except LMCacheKitError:
            return False
        return all(worker["registered"] and worker["synced"] for worker in workers)

    async def _poll(self, ready: Callable[[], Awaitable[bool]], deadline: float, message: str) -> None:
        while not await ready():
            if asyncio.get_running_loop().time() > deadline:
                raise UnavailableError(message, hint="raise startup_timeout, or see the logs of the run")
            await asyncio.sleep(_POLL_SECONDS)
