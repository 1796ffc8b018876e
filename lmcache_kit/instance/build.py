"""From a configuration to the parts of an instance's cache, through the plugin registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lmcache_kit.clock import Clock
from lmcache_kit.contracts.engine import EngineInfo
from lmcache_kit.contracts.placement import PlacementPolicy, Promotion, TierView
from lmcache_kit.contracts.records import EvictionPlugin, PlacementPlugin, StoragePlugin, TransportPlugin
from lmcache_kit.contracts.storage import StorageContext
from lmcache_kit.contracts.transport import Transport
from lmcache_kit.errors import ConfigError, LMCacheKitError, UnknownNameError
from lmcache_kit.instance.config.extension import SECTION
from lmcache_kit.instance.config.model import InstanceConfig, PeerSpec, TierSpec
from lmcache_kit.instance.core.events import CacheChange, EventSink
from lmcache_kit.instance.core.tiers import Tier
from lmcache_kit.instance.store.codecs import CodecSet
from lmcache_kit.instance.store.operations import PeerLink
from lmcache_kit.instance.store.store import KVStore
from lmcache_kit.kv.hashing import ChunkHasher
from lmcache_kit.plugins import PluginRegistry, registry

__all__ = ["build_codecs", "build_placement", "build_store", "build_tiers", "build_transport"]


@contextmanager
def _blamed(key: str) -> Iterator[None]:
    # A name that the configuration gives is a mistake in the configuration, not a missing object of a request.
    try:
        yield
    except (ConfigError, UnknownNameError) as error:
        raise ConfigError(f"{key}: {error.message}", hint=error.hint) from None


def build_store(
    config: InstanceConfig,
    info: EngineInfo,
    *,
    clock: Clock,
    on_change: Callable[[CacheChange], None],
    peers: PeerLink | None = None,
    tiers: Sequence[Tier] | None = None,
    codecs: CodecSet | None = None,
    on_event: EventSink | None = None,
    plugins: PluginRegistry | None = None,
) -> KVStore:
    """The instance's store, not opened yet.

    Args:
        config: the instance's configuration.
        info: what the engine serves.
        clock: the store's time.
        on_change: told every change of contents.
        peers: reaches other instances.
        tiers: what :func:`build_tiers` made; made here when None.
        codecs: what :func:`build_codecs` made; made here when None.
        on_event: told every decision of the cache.
        plugins: the process's registry when None.

    Raises ConfigError naming the key for an unknown plugin or a wrong option.
    """
    codecs = codecs or build_codecs(config, plugins)
    for key, method in [(f"{SECTION}.store_method", config.store_method), *_tier_methods(config)]:
        with _blamed(key):
            codecs.get(method)
    made = list(tiers) if tiers is not None else build_tiers(config, plugins)
    try:
        return KVStore(
            model=info.fingerprint,
            layout=info.layout,
            hasher=ChunkHasher(config.hash_spec),
            tiers=made,
            placement=build_placement(config, made, plugins),
            codecs=codecs,
            clock=clock,
            on_change=on_change,
            peers=peers,
            min_retrieve_tokens=config.min_retrieve_tokens,
            threads=config.threads,
            store_codec=config.store_method,
            on_event=on_event,
        )
    except LMCacheKitError:
        for tier in made:
            tier.backend.close()
        raise


def _tier_methods(config: InstanceConfig) -> list[tuple[str, str]]:
    return [("remote_serde or a tier's method", tier.method) for tier in config.tiers if tier.method is not None]


def build_codecs(config: InstanceConfig, plugins: PluginRegistry | None = None) -> CodecSet:
    """All compression methods, with the configuration's options. Raises ConfigError for options of an unknown one."""
    plugins = plugins or registry()
    codecs = CodecSet(plugins, options=config.methods)
    for method, options in config.methods.items():
        with _blamed(f"{SECTION}.methods"):
            plugins.options(codecs.record(method), options)
    return codecs


def build_tiers(config: InstanceConfig, plugins: PluginRegistry | None = None) -> list[Tier]:
    """The tiers with their backends, fastest first. Raises ConfigError, and UnavailableError from a backend."""
    plugins = plugins or registry()
    tiers: list[Tier] = []
    if not config.tiers:
        raise ConfigError("there is no tier", hint="set local_cpu: true, or give local_disk or remote_url")
    try:
        for spec in config.tiers:
            tier = _tier(spec, config, plugins)
            tiers.append(tier)
            if sum(other.location == tier.location for other in tiers) > 1:
                raise ConfigError(
                    f"two tiers are called {tier.location}",
                    hint=f"give one of them another location in {SECTION}.tiers",
                )
        locations = [tier.location for tier in tiers]
        for key, wanted in (
            ("store_location", [config.store_location]),
            ("retrieve_locations", config.retrieve_locations),
        ):
            for location in wanted or ():
                if location is not None and location not in locations:
                    with _blamed(key):
                        raise UnknownNameError("location", location, locations)
    except BaseException:
        for tier in tiers:
            tier.backend.close()
        raise
    return tiers


def _tier(spec: TierSpec, config: InstanceConfig, plugins: PluginRegistry) -> Tier:
    with _blamed("tiers"):
        storage = plugins.get(StoragePlugin, spec.storage.kind)
        options = plugins.options(storage, spec.storage.options)
    with _blamed("cache_policy or eviction"):
        eviction = plugins.get(EvictionPlugin, spec.eviction.kind)
        policy = eviction.factory(plugins.options(eviction, spec.eviction.options), spec.capacity_bytes)
    location = spec.location or storage.location
    context = StorageContext(
        instance_id=config.instance_id,
        location=location,
        capacity_bytes=spec.capacity_bytes,
        data_dir=Path(config.data_dir),
    )
    return Tier(
        location=location,
        backend=storage.factory(options, context),
        capacity_bytes=spec.capacity_bytes,
        policy=policy,
        inline="inline" in storage.capabilities,
        persistent="persistent" in storage.capabilities,
        shared="shared" in storage.capabilities,
        readable=config.retrieve_locations is None or location in config.retrieve_locations,
        method=spec.method,
    )


def build_placement(
    config: InstanceConfig, tiers: Sequence[Tier], plugins: PluginRegistry | None = None
) -> PlacementPolicy:
    """The placement policy, restricted to ``store_location`` when that is set. Raises ConfigError."""
    plugins = plugins or registry()
    with _blamed(f"{SECTION}.placement"):
        record = plugins.get(PlacementPlugin, config.placement.kind)
        placement = record.factory(plugins.options(record, config.placement.options))
    if config.store_location is None:
        return placement
    return _StoreOnly(placement, [tier.location for tier in tiers].index(config.store_location))


class _StoreOnly(PlacementPolicy):
    """Writes new objects to one tier only; everything else as the policy says."""

    def __init__(self, inner: PlacementPolicy, target: int) -> None:
        self._inner = inner
        self._target = target

    def on_store(self, tiers: Sequence[TierView], nbytes: int) -> Sequence[int]:
        return (self._target,)

    def on_idle(self, tiers: Sequence[TierView], held: Sequence[int], nbytes: int) -> Sequence[int]:
        return ()

    def on_hit(self, tiers: Sequence[TierView], tier: int, nbytes: int) -> Promotion | None:
        return self._inner.on_hit(tiers, tier, nbytes)

    def on_evict(self, tiers: Sequence[TierView], tier: int, held: Sequence[int], nbytes: int) -> int | None:
        return self._inner.on_evict(tiers, tier, held, nbytes)


def build_transport(spec: PeerSpec, plugins: PluginRegistry | None = None) -> tuple[str, Transport]:
    """The scheme and the transport that carry chunks between instances. Raises ConfigError."""
    plugins = plugins or registry()
    with _blamed(f"transfer_channel or {SECTION}.transport"):
        record = plugins.get(TransportPlugin, spec.transport.kind)
        options = plugins.options(record, spec.transport.options)
    return record.scheme, record.factory(options)
