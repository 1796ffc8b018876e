"""What a hook yields: frozen records that name a plugin and say how to make it.

A record costs nothing to yield: ``factory`` is called only when a scenario, a configuration or a command asks for the
plugin by name, so heavy imports belong inside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import msgspec

from lmcache_kit.errors import ConfigError

if TYPE_CHECKING:
    from lmcache_kit.contracts.compression import CompressionMethod
    from lmcache_kit.contracts.engine import Engine, ServerCommand, ServerSpec
    from lmcache_kit.contracts.eviction import EvictionPolicy
    from lmcache_kit.contracts.launcher import Launcher
    from lmcache_kit.contracts.placement import PlacementPolicy
    from lmcache_kit.contracts.reporter import Reporter
    from lmcache_kit.contracts.storage import StorageBackend, StorageContext
    from lmcache_kit.contracts.trace import TraceReader
    from lmcache_kit.contracts.transport import Transport
    from lmcache_kit.contracts.workload import Workload

__all__ = [
    "API_VERSION",
    "PLUGIN_KINDS",
    "CompressionPlugin",
    "EnginePlugin",
    "EvictionPlugin",
    "LauncherPlugin",
    "NoOptions",
    "Options",
    "PlacementPlugin",
    "Plugin",
    "ReporterPlugin",
    "StoragePlugin",
    "TracePlugin",
    "TransportPlugin",
    "WorkloadPlugin",
]

API_VERSION = 1
"""The contract version that this core implements; a record with another one is refused by name."""


class Options(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Base of a plugin's options, as in ``class MyOptions(Options, frozen=True)``.

    Fields are typed, have defaults, are validated, and become part of the scenario's JSON Schema.
    """


class NoOptions(Options, frozen=True):
    """For plugins that take no options."""


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """What all records share.

    Args:
        name: how scenarios and configurations call it; lower-case letters, digits and underscores.
        summary: one line for ``lmcache-kit plugins list``.
        options: the plugin's options type.
        capabilities: what it can do beyond the contract; each contract module lists the names it knows.
        api_version: contract version it was written for.
    """

    kind: ClassVar[str]
    name: str
    summary: str
    options: type[Options] = NoOptions
    capabilities: frozenset[str] = field(default_factory=frozenset)
    api_version: int = API_VERSION


@dataclass(frozen=True, kw_only=True)
class StoragePlugin(Plugin):
    """A storage backend; ``location`` is the name under which the controller lists it, e.g. ``LocalCPUBackend``."""

    kind: ClassVar[str] = "storage"
    location: str
    factory: Callable[[Options, StorageContext], StorageBackend]


@dataclass(frozen=True, kw_only=True)
class CompressionPlugin(Plugin):
    """A compression method."""

    kind: ClassVar[str] = "compression"
    factory: Callable[[Options], CompressionMethod]


@dataclass(frozen=True, kw_only=True)
class TransportPlugin(Plugin):
    """A transport; ``scheme`` begins the addresses it serves, e.g. ``tcp`` for ``tcp://127.0.0.1:8200``.

    It has lower-case letters, digits, ``+``, ``-`` and ``.``, a letter first, and no underscores, as in any URL.
    """

    kind: ClassVar[str] = "transport"
    scheme: str
    factory: Callable[[Options], Transport]


@dataclass(frozen=True, kw_only=True)
class EnginePlugin(Plugin):
    """An inference engine: exactly one of ``factory`` and ``server``.

    ``factory`` is called with the options and the model name or path. An engine that is a server of its own has a
    ``server``, called with the options and what to serve; it raises ConfigError for a program that is not installed.

    ``default_model`` is served when nobody names a model. It should need neither options, files nor a network;
    without one a name is asked for.
    """

    kind: ClassVar[str] = "engine"
    factory: Callable[[Options, str], Engine] | None = None
    server: Callable[[Options, ServerSpec], ServerCommand] | None = None
    default_model: str | None = None

    def make(self, options: Options, model: str) -> Engine:
        """The engine, in this process. Raises ConfigError for one that is a server of its own."""
        if self.factory is None:
            raise ConfigError(
                f"engine {self.name!r} is a server of its own, which cannot be taken into another process",
                hint="`lmcache-kit serve` and scenarios on the wall clock run it",
            )
        return self.factory(options, model)


@dataclass(frozen=True, kw_only=True)
class EvictionPlugin(Plugin):
    """An eviction policy; called with its options and the tier's capacity in bytes (None: unbounded)."""

    kind: ClassVar[str] = "eviction"
    factory: Callable[[Options, int | None], EvictionPolicy]


@dataclass(frozen=True, kw_only=True)
class PlacementPlugin(Plugin):
    """A placement policy."""

    kind: ClassVar[str] = "placement"
    factory: Callable[[Options], PlacementPolicy]


@dataclass(frozen=True, kw_only=True)
class WorkloadPlugin(Plugin):
    """A workload; ``clocks`` names the clocks it runs under."""

    kind: ClassVar[str] = "workload"
    factory: Callable[[Options], Workload]
    clocks: frozenset[Literal["wall", "virtual"]] = frozenset({"wall"})


@dataclass(frozen=True, kw_only=True)
class TracePlugin(Plugin):
    """A trace reader."""

    kind: ClassVar[str] = "trace"
    factory: Callable[[Options], TraceReader]


@dataclass(frozen=True, kw_only=True)
class LauncherPlugin(Plugin):
    """A launcher of controllers and instances."""

    kind: ClassVar[str] = "launcher"
    factory: Callable[[Options], Launcher]


@dataclass(frozen=True, kw_only=True)
class ReporterPlugin(Plugin):
    """A reporter."""

    kind: ClassVar[str] = "reporter"
    factory: Callable[[Options], Reporter]


PLUGIN_KINDS: dict[str, type[Plugin]] = {
    record.kind: record
    for record in (
        StoragePlugin,
        CompressionPlugin,
        TransportPlugin,
        EnginePlugin,
        EvictionPlugin,
        PlacementPlugin,
        WorkloadPlugin,
        TracePlugin,
        LauncherPlugin,
        ReporterPlugin,
    )
}
