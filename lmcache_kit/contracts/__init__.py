"""What a plugin implements, one module per kind."""

from lmcache_kit.contracts.compression import (
    CompressionMethod,
    SupportsBatches,
    SupportsFitting,
    SupportsLayerwise,
)
from lmcache_kit.contracts.engine import (
    Engine,
    EngineInfo,
    EngineSequence,
    SamplingParams,
    ServerCommand,
    ServerSpec,
)
from lmcache_kit.contracts.eviction import EvictionPolicy
from lmcache_kit.contracts.launcher import LaunchedProcess, Launcher, LaunchSpec
from lmcache_kit.contracts.placement import PlacementPolicy, Promotion, TierView
from lmcache_kit.contracts.records import (
    API_VERSION,
    PLUGIN_KINDS,
    CompressionPlugin,
    EnginePlugin,
    EvictionPlugin,
    LauncherPlugin,
    NoOptions,
    Options,
    PlacementPlugin,
    Plugin,
    ReporterPlugin,
    StoragePlugin,
    TracePlugin,
    TransportPlugin,
    WorkloadPlugin,
)
from lmcache_kit.contracts.reporter import Reporter
from lmcache_kit.contracts.storage import Buffer, StorageBackend, StorageContext, SupportsBatch, SupportsHealth
from lmcache_kit.contracts.trace import TraceFormat, TraceReader, TraceRecord
from lmcache_kit.contracts.transport import Channel, FrameHandler, Listener, Transport
from lmcache_kit.contracts.workload import EventSink, InstanceHandle, Workload, WorkloadContext, WorkloadResult

__all__ = [
    "API_VERSION",
    "PLUGIN_KINDS",
    "Buffer",
    "Channel",
    "CompressionMethod",
    "CompressionPlugin",
    "Engine",
    "EngineInfo",
    "EnginePlugin",
    "EngineSequence",
    "EventSink",
    "EvictionPlugin",
    "EvictionPolicy",
    "FrameHandler",
    "InstanceHandle",
    "LaunchSpec",
    "LaunchedProcess",
    "Launcher",
    "LauncherPlugin",
    "Listener",
    "NoOptions",
    "Options",
    "PlacementPlugin",
    "PlacementPolicy",
    "Plugin",
    "Promotion",
    "Reporter",
    "ReporterPlugin",
    "SamplingParams",
    "ServerCommand",
    "ServerSpec",
    "StorageBackend",
    "StorageContext",
    "StoragePlugin",
    "SupportsBatch",
    "SupportsBatches",
    "SupportsFitting",
    "SupportsHealth",
    "SupportsLayerwise",
    "TierView",
    "TraceFormat",
    "TracePlugin",
    "TraceReader",
    "TraceRecord",
    "Transport",
    "TransportPlugin",
    "Workload",
    "WorkloadContext",
    "WorkloadPlugin",
    "WorkloadResult",
]
