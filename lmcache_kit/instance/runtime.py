"""Everything of an instance but its engine and its HTTP server: store, peers and worker, started in order."""

from __future__ import annotations

import asyncio
from typing import Any

from lmcache_kit.clock import Clock
from lmcache_kit.contracts.engine import EngineInfo
from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.contracts.transport import Transport
from lmcache_kit.errors import ConfigError, ConflictError, UnavailableError, UnknownNameError
from lmcache_kit.instance.build import build_codecs, build_store, build_tiers, build_transport
from lmcache_kit.instance.config.model import InstanceConfig, LinkSpec
from lmcache_kit.instance.core.events import CacheChange, EventSink
from lmcache_kit.instance.faults import InstanceFaults
from lmcache_kit.instance.peer import Adjustment, PeerClient, PeerServer
from lmcache_kit.instance.tier_health import TierHealth
from lmcache_kit.instance.worker.addresses import is_loopback, route_to
from lmcache_kit.instance.worker.worker import ControllerWorker
from lmcache_kit.plugins import PluginRegistry

__all__ = ["InstanceRuntime"]

_ANY_HOST = "0.0.0.0"


class _Peers:
    """The peer client as the store sees it; it exists only once the peer server has its address."""

    def __init__(self, timeout: float) -> None:
        self.client: PeerClient | None = None
        self._timeout = timeout

    async def send(self, peer_url: str, location: str, blob: Buffer, *, timeout: float, move: str) -> int:
        if self.client is None:
            raise UnavailableError("the instance is not started")
        return await self.client.send(peer_url, location, blob, timeout=min(timeout, self._timeout), move=move)

    def is_self(self, peer_url: str) -> bool:
        return self.client is not None and self.client.is_self(peer_url)


class InstanceRuntime:
    """The cache side of one instance. Made, started and closed in one event loop.

    Args:
        config: the instance's configuration.
        info: what the engine serves.
        clock: time of the cache and of shaped links.
        on_event: told every decision of the cache.
        plugins: the process's registry when None.
        faults: what goes wrong from the start; None when no faults will ever be asked for.

    Raises ConfigError naming the key for an unknown plugin or a wrong option.
    """

    def __init__(
        self,
        config: InstanceConfig,
        info: EngineInfo,
        *,
        clock: Clock,
        on_event: EventSink | None = None,
        plugins: PluginRegistry | None = None,
        faults: InstanceFaults | None = None,
    ) -> None:
        self.config = config
        self._faults = faults
        self._info = info
        self._plugins = plugins
        self._clock = clock
        self._scheme, self._transport = build_transport(config.peer, plugins)
        self.codecs = build_codecs(config, plugins)
        self._peers = _Peers(config.peer.timeout)
        self._tiers = build_tiers(config, plugins)
        self.store = build_store(
            config,
            info,
            clock=clock,
            on_change=self._on_change,
            peers=self._peers,
            tiers=self._tiers,
            codecs=self.codecs,
            on_event=on_event,
            plugins=plugins,
        )
        self._health = TierHealth(self._tiers)
        self._server = PeerServer()
        self.worker: ControllerWorker | None = None
        self.peer_url: str | None = None
        """URL under which other instances reach this one; None without a peer server."""

    def _on_change(self, change: CacheChange) -> None:
        if self.worker is not None:
            self.worker.on_change(change)

    async def start(self) -> None:
        """Open the store, then the peer server, then join the controller (without waiting for it).

        Raises ConfigError for a port in use, naming the key to change; nothing stays open then.
        """
        try:
            await self.store.open()
            ip = await self._ip()
            if self.config.peer.serve:
                self.peer_url = await self._listen(ip)
            self._peers.client = self._client(self._transport)
            if self.config.controller is not None:
                worker = ControllerWorker(
                    self.config,
                    self.store,
                    self._clock,
                    ip=ip,
                    peer_url=self.peer_url,
                    methods=self.codecs.names(),
                    model=self._info.model,
                    health=self.unreachable_tiers,
                )
                await worker.start()
                self.worker = worker
            if self._faults is not None:
                self.apply(self._faults)  # before the worker has its first turn
        except BaseException:
            await self.close()
            raise

    def apply(self, faults: InstanceFaults) -> None:
        """Have these faults, and no others. Raises LMCacheKitError, with nothing changed, when one is impossible."""
        if self._faults is None or self._peers.client is None:
            raise ConflictError("this instance takes no faults")
        adjustments = {
            url: Adjustment(bandwidth=link.bandwidth, latency=link.latency, cut=link.cut)
            for url, link in faults.links.items()
        }
        for location in faults.full_tiers:
            if location not in self.store.locations():
                raise UnknownNameError("location", location, self.store.locations())
        self._peers.client.adjust(adjustments)
        self.store.set_full(faults.full_tiers)
        if self.worker is not None:
            self.worker.set_cut(faults.controller_cut)

    async def _ip(self) -> str:
        controller = self.config.controller
        if controller is None:
            return "127.0.0.1"
        if controller.advertise_host is not None:
            return controller.advertise_host
        return await asyncio.to_thread(route_to, controller.pull)  # may ask a name server

    async def _listen(self, ip: str) -> str:
        peer = self.config.peer
        host = peer.host or (ip if is_loopback(ip) else _ANY_HOST)
        address = peer.address
        if address is None:
            address = _address(self._scheme, host, peer.port, self.config.instance_id)
        try:
            await self._server.start(address, self._transport, self.store)
        except ConflictError as error:
            raise ConfigError(
                f"the peer server cannot listen: {error.message}",
                hint="set p2p_init_ports (or distributed_url) to a free port, or to 0 for any",
            ) from None
        except (ConfigError, UnavailableError) as error:
            raise ConfigError(
                f"the peer server cannot listen: {error.message}",
                hint="p2p_host must be an address of this machine, or set extra_config.lmcache_kit.transport.address",
            ) from None
        # Everybody connects to one interface, also when the server listens on all of them.
        announced = self._server.address
        for anybody in ("://*:", f"://{_ANY_HOST}:", "://[::]:"):
            announced = announced.replace(anybody, f"://[{ip}]:" if ":" in ip else f"://{ip}:")
        return announced

    def _client(self, transport: Transport) -> PeerClient:
        peer = self.config.peer
        shaping = {url: _shape(link) for url, link in peer.links.items()}
        if peer.default_link is not None:
            shaping["*"] = _shape(peer.default_link)
        return PeerClient(
            self.peer_url,
            {self._scheme: transport},
            shaping,
            clock=self._clock,
            plugins=self._plugins,
            adjustable=self._faults is not None,
        )

    async def close(self) -> None:
        """Leave the controller, finish jobs, close the store and the sockets; idempotent."""
        if self.worker is not None:
            await self.worker.close()
        await self._server.close()
        await self.store.close()
        if self._peers.client is not None:
            await self._peers.client.close()

    async def tier_health(self) -> dict[str, dict[str, Any]]:
        """Per location: whether it can be reached, and what its backend says."""
        return await self._health.facts(self.store.stats()["tiers"])

    async def unreachable_tiers(self) -> int:
        """How many tiers cannot be reached; 0 is healthy."""
        return sum(not facts["available"] for facts in (await self.tier_health()).values())

    def stats(self) -> dict[str, Any]:
        """Facts for ``/health`` and ``/metrics``: store, worker, peers and shaped links."""
        return {
            "store": self.store.stats(),
            "worker": self.worker.stats() if self.worker is not None else None,
            "peer": {"url": self.peer_url, **self._server.stats()},
            "links": self._peers.client.stats() if self._peers.client is not None else {},
        }


def _address(scheme: str, host: str, port: int, instance_id: str) -> str:
    if scheme == "tcp":
        return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{'*' if host == _ANY_HOST else host}:{port}"
    # Schemes without hosts and ports are named after the instance.
    name = "".join(char if char.isascii() and char.isalnum() else "-" for char in instance_id)
    return f"{scheme}://{name}-{port}" if port else f"{scheme}://{name}"


def _shape(link: LinkSpec) -> tuple[float | None, float]:
    return link.bandwidth, link.latency
