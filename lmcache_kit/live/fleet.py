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
_TELL_SECONDS = 10.0


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
        self._servers = {planned.instance_id for planned in plan.instances if planned.server}
        self._awaited: list[str] = []

    async def boot(self, *, timeout: float) -> None:
        """Start everything and wait until it serves. Raises UnavailableError naming what is not ready in time."""
        deadline = asyncio.get_running_loop().time() + timeout
        self._progress(f"starting a controller and {format_count(len(self._plan.instances), 'instances')}")
        # Instances load their model meanwhile; they join the controller whenever it is there.
        await self._supervisor.start(self._plan.controller, ports=self._plan.controller_ports)
        for planned in self._plan.instances:
            await self._supervisor.start(planned.spec, ports=planned.ports)
        telling = asyncio.create_task(self._tell_awaited(timeout))
        try:
            await self._supervisor.run(self._until_ready(deadline, timeout), during="start-up")
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)

    async def close(self) -> None:
        """Close the clients."""
        for client in (self.controller, *self._clients.values()):
            await client.close()

    async def _until_ready(self, deadline: float, timeout: float) -> None:
        late = f"within startup_timeout ({timeout:g} s)"
        self._awaited = ["the controller", *(f"instance {name}" for name in self._clients)]
        await self._poll(self.controller.ready, deadline, f"the controller is not ready {late}")
        self._awaited.remove("the controller")
        self._progress(f"controller ready at {self._plan.controller_url}")
        await asyncio.gather(
            *(self._instance_ready(planned.instance_id, deadline, late) for planned in self._plan.instances)
        )
        self._awaited = ["every instance to join the controller"]
        await self._poll(self._all_registered, deadline, f"not every instance has joined the controller {late}")
        for planned in self._plan.instances:
            client = self._clients[planned.instance_id]
            self.instances[planned.instance_id] = InstanceHandle(
                instance_id=planned.instance_id,
                url=planned.url,
                client=client,
                locations=planned.locations,
                model=await client.model(),
                chunk_size=planned.chunk_size,
                server=planned.server,
            )

    async def _instance_ready(self, instance_id: str, deadline: float, late: str) -> None:
        client = self._clients[instance_id]
        await self._poll(client.ready, deadline, f"instance {instance_id} is not ready {late}")
        self._awaited.remove(f"instance {instance_id}")
        self._progress(f"instance {instance_id} ready at {client.url}")

    async def _tell_awaited(self, timeout: float) -> None:
        """Say now and then what is still being waited for: a real engine may take minutes."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        while True:
            await asyncio.sleep(_TELL_SECONDS)
            waited = f"{loop.time() - begin:.0f} s of at most {timeout:g} s"
            self._progress(f"waiting for {', '.join(self._awaited)} ({waited})")

    async def _all_registered(self) -> bool:
        return await self._registered(set(self._clients))

    async def _registered(self, instances: set[str]) -> bool:
        try:
            infos = (await self.controller.workers())["worker_infos"]
        except LMCacheKitError:
            return False
        return instances <= {info["instance_id"] for info in infos}

    async def registered_at(self, instance_id: str) -> float | None:
        """When an instance joined the controller, in seconds since 1970; None when that cannot be told."""
        try:
            infos = (await self.controller.workers(instance_id))["worker_infos"]
        except LMCacheKitError:
            return None
        return max((float(info["registration_time"]) for info in infos), default=None)

    async def instance_back(
        self, instance_id: str, *, joins: Callable[[], bool], before: float | None, timeout: float
    ) -> None:
        """Wait until an instance that was started again serves and, while it ``joins`` the controller, is known to it.

        Args:
            instance_id: the instance.
            joins: whether it reaches the controller now.
            before: when it had joined the controller the last time, of :meth:`registered_at`.
            timeout: seconds after which UnavailableError is raised.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        await self._poll(
            lambda: self._back(instance_id, before) if joins() else self._clients[instance_id].ready(),
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

    async def _back(self, instance_id: str, before: float | None) -> bool:
        if not await self._told_everything({instance_id}):
            return False
        # The controller may know a server of its own from the time before, and only we know that it was killed.
        return instance_id not in self._servers or await self.registered_at(instance_id) != before

    async def _told_everything(self, instances: set[str]) -> bool:
        """Whether the instances have joined the controller and told it what they hold.

        Ours are asked themselves; of those that are servers of their own, the controller is.
        """
        try:
            workers = [(await self._clients[name].health())["worker"] for name in instances - self._servers]
            if not all(worker["registered"] and worker["synced"] for worker in workers):
                return False
            for name in instances & self._servers:
                infos = (await self.controller.workers(name))["worker_infos"]
                if not infos or any(info["syncing"] or info["sync_reason"] is not None for info in infos):
                    return False
                if not await self._clients[name].ready():
                    return False
        except LMCacheKitError:
            return False
        return True

    async def _poll(self, ready: Callable[[], Awaitable[bool]], deadline: float, message: str) -> None:
        while not await ready():
            if asyncio.get_running_loop().time() > deadline:
                raise UnavailableError(message, hint="raise startup_timeout, or see the logs of the run")
            await asyncio.sleep(_POLL_SECONDS)
