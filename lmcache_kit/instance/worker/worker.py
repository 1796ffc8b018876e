"""The instance's side of the controller protocol: membership, reports of cache changes and the control socket.

The instance serves whatever becomes of the controller: nothing here is awaited by a completion. The worker registers,
keeps trying while there is no controller, sends heartbeats, and after every (re-)connection tells the controller
everything that it holds, so that a restart of either side heals the controller's index.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import zmq.asyncio

from lmcache_kit.clock import Clock
from lmcache_kit.errors import ConfigError, LMCacheKitError
from lmcache_kit.instance.config.model import InstanceConfig
from lmcache_kit.instance.core.events import CacheChange
from lmcache_kit.instance.worker.addresses import is_loopback, route_to
from lmcache_kit.instance.worker.control_handlers import ControlHandlers, ControlledStore, HealthCheck
from lmcache_kit.instance.worker.control_socket import ControlSocket
from lmcache_kit.instance.worker.membership import Membership
from lmcache_kit.instance.worker.push_channel import PushChannel
from lmcache_kit.instance.worker.reporting import Reporting
from lmcache_kit.kv.hashing import HashSpec
from lmcache_kit.messages import DeRegisterMsg

__all__ = ["ControllerWorker"]

log = logging.getLogger(__name__)

_PAUSE_AFTER_FAILURE = 1.0


class ControllerWorker:
    """One instance's worker. Started and closed in one event loop.

    Changes of the store's contents that happen before :meth:`start` need not be told: the first sync contains them.

    Args:
        config: the instance's configuration; its ``controller`` must not be None.
        store: what the controller's messages act on, and whose contents are reported.
        clock: calendar time shown in :meth:`stats`.
        ip: host announced to the controller; None for the configured one, or the one on the way to the controller.
        peer_url: URL of the instance's peer server, without which ``/move`` to this instance is impossible.
        methods: compression methods that the instance can use.
        model: name of the model.
        hash_spec: how the instance names its chunks; the configuration's when None.
        health: asked by the controller's health check: 0, or the number of tiers that cannot be reached.
    """

    def __init__(
        self,
        config: InstanceConfig,
        store: ControlledStore,
        clock: Clock,
        *,
        ip: str | None = None,
        peer_url: str | None = None,
        methods: Sequence[str] = (),
        model: str = "",
        hash_spec: HashSpec | None = None,
        health: HealthCheck,
    ) -> None:
        if config.controller is None:
            raise ConfigError("there is no controller to join", hint="set enable_controller: true")
        self._spec = config.controller
        self._instance_id = config.instance_id
        self._store = store
        self._clock = clock
        self._ip = ip or self._spec.advertise_host
        self._peer_url = peer_url
        self._methods = list(methods)
        self._model = model or None
        self._hash_spec = hash_spec or config.hash_spec
        self._handlers = ControlHandlers(store, health=health, pin_ttl=config.pin_ttl)
        self._context: zmq.asyncio.Context | None = None
        self._control: ControlSocket | None = None
        self._push: PushChannel | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.membership: Membership | None = None
        """Registration and heartbeats; None while the worker is not started."""
        self.reporting: Reporting | None = None
        """Full syncs and changes; None while the worker is not started."""
        self.port = 0
        """Port of the control socket, once started."""

    @property
    def registered(self) -> bool:
        """Whether the controller knows this worker, as far as the worker can tell."""
        return self.membership is not None and self.membership.registered

    async def start(self) -> None:
        """Open the control socket and begin to look for the controller; does not wait for it.

        Raises ConfigError, naming the key to change, when the control port cannot be opened.
        """
        if self._ip is None:
            self._ip = await asyncio.to_thread(route_to, self._spec.pull)  # may ask a name server
        context = zmq.asyncio.Context()
        control = ControlSocket(context, self._handlers.handle)
        try:
            control.bind(self._control_host(self._ip), self._spec.worker_port)
        except LMCacheKitError:
            context.term()
            raise
        self._context, self._control, self.port = context, control, control.port
        self._push = PushChannel(context, self._spec.pull, on_reconnect=lambda: membership.reconnected())
        self.membership = membership = Membership(
            context,
            self._spec,
            self._identity,
            self._push,
            on_joined=lambda: reporting.joined(),
            on_sync_asked=lambda reason: reporting.asked(reason),
            clock=self._clock,
        )
        self.reporting = reporting = Reporting(
            self._instance_id,
            self._spec.worker_id,
            snapshot=self._snapshot,
            request=membership.request,
            push=self._push,
            pushed_only=lambda: membership.pushed_only,
            limit=self._spec.max_pending_operations,
        )
        self._tasks = [
            asyncio.create_task(_forever(part), name=f"lmcache-kit worker: {part.__name__}")
            for part in (membership.run, reporting.run_syncs, reporting.run_changes)
        ]

    def _control_host(self, ip: str) -> str:
        if self._spec.control_host is not None:
            return self._spec.control_host
        # A controller on this machine needs no port that others can reach: the socket takes clear and move from anyone.
        return ip if is_loopback(ip) else "*"

    async def close(self) -> None:
        """Leave the controller and free the sockets; idempotent."""
        context, self._context = self._context, None
        if context is None:
            return
        assert self._control is not None
        assert self._push is not None
        assert self.membership is not None
        goodbye = self._goodbye() if self.membership.registered else None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._control.close()
        await self._push.close(goodbye)
        self.membership.close()
        await asyncio.to_thread(context.term)  # until the goodbye is out, half a second at most

    def on_change(self, change: CacheChange) -> None:
        """Take one change of the store's contents; returns at once. To be called in the event loop's thread."""
        if self.reporting is not None:
            self.reporting.changes.add(change.op, change.location, change.key.hash)

    def set_cut(self, cut: bool) -> None:
        """Be parted from the controller, in both directions, while ``cut``; afterwards the worker joins it anew."""
        if self._control is None or self._push is None or self.membership is None:
            return
        self._control.cut = cut
        self.membership.set_cut(cut)
        self._push.set_cut(cut)

    def stats(self) -> dict[str, Any]:
        """Facts for ``/health`` and ``/metrics``."""
        if self.membership is None or self.reporting is None:
            return {"registered": False}
        return {
            "registered": self.membership.registered,
            "pushed_registration": self.membership.pushed_only,
            "registrations": self.membership.registrations,
            "heartbeats": self.membership.heartbeats,
            "last_heartbeat_unix": self.membership.last_heartbeat_unix,
            "synced": self.reporting.synced.is_set(),
            "full_syncs": self.reporting.full_syncs,
            "reported_operations": self.reporting.reported,
            "pending_operations": len(self.reporting.changes),
            "dropped_operations": self.reporting.changes.dropped,
            "control_port": self.port,
        }

    def _snapshot(self) -> dict[str, list[int]]:
        return {location: [key.hash for key in self._store.contents(location)] for location in self._store.locations()}

    def _identity(self) -> dict[str, Any]:
        spec = self._hash_spec
        return {
            "instance_id": self._instance_id,
            "worker_id": self._spec.worker_id,
            "ip": self._ip,
            "port": self.port,
            "peer_init_url": self._peer_url,
            "chunk_size": spec.chunk_size,
            "hash_algorithm": spec.algorithm,
            "none_hash": spec.none_hash,
            "save_unfull_chunk": spec.save_unfull_chunk,
            "methods": self._methods,
            "locations": self._store.locations(),
            "model": self._model,
        }

    def _goodbye(self) -> DeRegisterMsg:
        assert self._ip is not None
        return DeRegisterMsg(instance_id=self._instance_id, worker_id=self._spec.worker_id, ip=self._ip, port=self.port)


async def _forever(part: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await part()
        except Exception:
            # One part must end neither the others nor the instance.
            log.exception("a part of the controller worker failed; it starts again")
            await asyncio.sleep(_PAUSE_AFTER_FAILURE)
