"""Every key of LMCache 0.5.6's engine configuration, and what this package does with it.

A key is either honoured, or its use is answered with one warning that says why and what to use instead. The table is
also the source of docs/reference/configuration.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["ALIASES", "ENGINE_KEYS", "OLD_KEYS", "ConfigKey"]


@dataclass(frozen=True, slots=True)
class ConfigKey:
    """One key.

    Args:
        name: the key, as in the YAML file; the environment variable is ``LMCACHE_`` and the name in capitals.
        kind: a key of :data:`lmcache_kit.instance.config.values.CONVERTERS`.
        default: LMCache's own default; setting it explicitly never warns.
        note: how it is honoured, or why it is not.
        honoured: whether it has an effect here.
        ours: the default here when it differs from LMCache's; None when it does not.
    """

    name: str
    kind: str
    default: Any
    note: str
    honoured: bool = True
    ours: Any = None

    @property
    def initial(self) -> Any:
        """The value in force when the key is not set."""
        return self.default if self.ours is None else self.ours


_HONOURED = (
    ConfigKey("chunk_size", "int", 256, "tokens per chunk; announced to the controller"),
    ConfigKey("local_cpu", "bool", True, "a tier LocalCPUBackend (storage plugin memory)"),
    ConfigKey("max_local_cpu_size", "float", 5.0, "capacity of LocalCPUBackend in GB of 1024³ bytes, really accounted"),
    ConfigKey(
        "local_disk",
        "str",
        None,
        "folder of a tier LocalDiskBackend (storage plugin disk), with or without file://; a relative path starts at "
        "the configuration file; of several comma-separated folders the first is used, as LMCache does for one GPU",
    ),
    ConfigKey(
        "max_local_disk_size",
        "float",
        0.0,
        "capacity of LocalDiskBackend in GB of 1024³ bytes; as in LMCache there is no disk tier without it",
    ),
    ConfigKey(
        "remote_url",
        "str",
        None,
        "a tier RemoteBackend on a Redis or Valkey server (storage plugin valkey): redis://, rediss://, valkey://, "
        "valkeys:// or unix://; any other scheme is refused",
    ),
    ConfigKey(
        "remote_serde",
        "str",
        "naive",
        "compression method of what a completion writes to RemoteBackend; any installed method, not only LMCache's",
    ),
    ConfigKey("save_decode_cache", "bool", False, "whether KV of generated tokens is stored too"),
    ConfigKey(
        "pre_caching_hash_algorithm",
        "str",
        "builtin",
        "chunk hash: builtin, sha256_cbor, sha256 or blake3; announced to the controller",
    ),
    ConfigKey(
        "retrieve_locations",
        "list of str",
        None,
        "only these tiers are read for a completion; moves, jobs and peers reach all",
    ),
    ConfigKey(
        "store_location",
        "str",
        None,
        "only this tier is written by a completion; moves, promotions and demotions reach all",
    ),
    ConfigKey("p2p_host", "str", None, "host under which other instances reach this one for /move"),
    ConfigKey(
        "p2p_init_ports", "list of int", None, "port of the peer server (the first one); 0 lets the system choose"
    ),
    ConfigKey("enable_controller", "bool", False, "whether the instance joins a controller"),
    ConfigKey(
        "lmcache_instance_id",
        "str",
        None,
        "name of the instance; required with enable_controller, otherwise lmcache_default_instance",
    ),
    ConfigKey("controller_pull_url", "str", None, "host:port of the controller's PULL socket"),
    ConfigKey(
        "controller_reply_url",
        "str",
        None,
        "host:port of the controller's reply socket; when absent, the pull port plus 1, where lmcache-kit controller "
        "--monitor-port binds it",
    ),
    ConfigKey(
        "lmcache_worker_ports",
        "list of int",
        None,
        "port of the worker's control socket (the first one); when absent or 0, one that the system chooses",
    ),
    ConfigKey("lmcache_worker_ids", "list of int", None, "worker id that is announced (the first one); 0 when absent"),
    ConfigKey(
        "lmcache_worker_heartbeat_delay_time",
        "int",
        10,
        "seconds from registration to the first heartbeat; when absent, 1 or one interval if that is shorter",
    ),
    ConfigKey(
        "lmcache_worker_heartbeat_time",
        "int",
        None,
        "seconds between heartbeats, 0 for none; 5 when absent (LMCache then sends none, and cannot heal)",
    ),
    ConfigKey(
        "transfer_channel",
        "str",
        None,
        "transport of /move: any installed transport plugin (zmq, shm, inproc); nixl and mock_memory are answered with "
        "a warning and the default zmq is used",
    ),
    ConfigKey(
        "extra_config",
        "mapping",
        None,
        "its lmcache_kit mapping holds our own settings and is strict; any other entry is warned about",
    ),
    ConfigKey(
        "save_unfull_chunk",
        "bool",
        False,
        "whether a last chunk with fewer than chunk_size tokens is kept; on by default here, as LMCache's documents "
        "show it",
        ours=True,
    ),
    ConfigKey(
        "blocking_timeout_secs",
        "int",
        10,
        "deadline of one exchange with another instance, and when set with the server of remote_url, in seconds",
    ),
    ConfigKey("cache_policy", "str", "LRU", "eviction policy of every tier, in any case: an installed eviction plugin"),
    ConfigKey("min_retrieve_tokens", "int", 0, "a shorter hit is not loaded but computed again"),
    ConfigKey(
        "pin_timeout_sec",
        "int",
        300,
        "time to live of pins that bring none, in seconds; when absent such a pin holds until it is released (LMCache "
        "drops it silently after 300 s)",
    ),
)

# (why not and what instead, keys with kind and LMCache's default)
_UNSUPPORTED: tuple[tuple[str, tuple[tuple[str, str, Any], ...]], ...] = (
    (
        "memory is allocated by the system as chunks arrive; max_local_cpu_size bounds it",
        (
            ("local_cpu_use_hugepages", "bool", False),
            ("reserve_local_cpu_size", "float", 0.0),
            ("numa_mode", "str", None),
            ("enable_lazy_memory_allocator", "bool", False),
            ("lazy_memory_initial_ratio", "float", 0.2),
            ("lazy_memory_expand_trigger_ratio", "float", 0.5),
            ("lazy_memory_step_ratio", "float", 0.1),
            ("lazy_memory_safe_size", "float", 0.0),
        ),
    ),
    (
        "there is one worker per instance, so paths are not sharded by GPU",
        (("local_disk_path_sharding", "str", "by_gpu"), ("gds_path_sharding", "str", "by_gpu")),
    ),
    (
        "a chunk is stored whole, and loaded beside the event loop without blocking it",
        (
            ("use_layerwise", "bool", False),
            ("enable_async_loading", "bool", False),
            ("use_gpu_connector_v3", "bool", False),
        ),
    ),
    (
        "only prefixes are reused; there is no blending of chunks from other positions",
        (
            ("enable_blending", "bool", False),
            ("blend_recompute_ratios", "list of float", None),
            ("blend_thresholds", "list of float", None),
            ("blend_check_layers", "list of int", None),
            ("blend_min_tokens", "int", 256),
            ("blend_special_str", "str", " # # "),
        ),
    ),
    (
        "a miss is not looked up at other instances; the peer server opens without it, and /move brings chunks",
        (("enable_p2p", "bool", False), ("p2p_lookup_ports", "list of int", None)),
    ),
    (
        "the instance serves alone; there is no separate multi-process server",
        (("mp_host", "str", None), ("mp_port", "int", 5555)),
    ),
    (
        "prefill and decode run in one instance; use /move to bring KV to another one",
        (
            ("enable_pd", "bool", False),
            ("pd_role", "str", None),
            ("pd_buffer_size", "int", None),
            ("pd_buffer_device", "str", None),
            ("pd_peer_host", "str", None),
            ("pd_peer_init_port", "list of int", None),
            ("pd_peer_alloc_port", "list of int", None),
            ("pd_peer_query_port", "list of int", None),
            ("pd_proxy_host", "str", None),
            ("pd_proxy_port", "int", None),
            ("pd_allocation_timeout_sec", "float", float("inf")),
            ("pd_shutdown_timeout_sec", "float", 5.0),
            ("pd_condition_poll_interval_sec", "float", 0.005),
            ("pd_max_prefill_len", "int", 0),
            ("pd_backend_mode", "str", "async"),
            ("pd_skip_proxy_notification", "bool", False),
            ("pd_bidirectional", "bool", False),
        ),
    ),
    (
        "there is no NIXL here; choose a transport with transfer_channel: zmq, shm or inproc",
        (
            ("nixl_backends", "list of str", None),
            ("nixl_buffer_size", "int", None),
            ("nixl_buffer_device", "str", None),
        ),
    ),
    (
        "there is no such store here; use local_disk, or a storage plugin under extra_config.lmcache_kit.tiers",
        (
            ("gds_path", "str", None),
            ("gds_buffer_size", "int", None),
            ("use_gds", "bool", True),
            ("gds_backend", "str", "cufile"),
            ("maru_path", "str", None),
            ("maru_pool_size", "float", 4.0),
            ("audit_actual_remote_url", "str", None),
        ),
    ),
    (
        "plugins are Python distributions with an entry point, or modules in LMCACHE_KIT_PLUGIN_MODULES; a storage "
        "plugin becomes a tier under extra_config.lmcache_kit.tiers",
        (
            ("runtime_plugin_locations", "list of str", None),
            ("storage_plugins", "list of str", None),
            ("remote_storage_plugins", "list of str", None),
        ),
    ),
    (
        "the instance's HTTP port has /health and /metrics; there is no second internal server",
        (
            ("internal_api_server_enabled", "bool", False),
            ("internal_api_server_host", "str", "127.0.0.1"),
            ("internal_api_server_port_start", "int", 6999),
            ("internal_api_server_include_index_list", "list of int", None),
            ("internal_api_server_socket_path_prefix", "str", None),
        ),
    ),
    (
        "no endpoint here runs code",
        (("script_allowed_imports", "list of str", None), ("run_script_api_enabled", "bool", False)),
    ),
    (
        "the tiers are looked up inside the instance, at once; there is no lookup client or server",
        (
            ("external_lookup_client", "str", None),
            ("lookup_timeout_ms", "int", 3000),
            ("lookup_server_worker_ids", "list of int", None),
            ("enable_scheduler_bypass_lookup", "bool", False),
            ("hit_miss_ratio", "float", None),
        ),
    ),
    ("Python's garbage collector stays on", (("py_enable_gc", "bool", True),)),
    ("every request is cached; requests have no priority here", (("priority_limit", "int", None),)),
    (
        "counts of hits and chunks are always on, in /metrics and the run's events.jsonl",
        (
            ("enable_chunk_statistics", "bool", False),
            ("chunk_statistics_auto_start_statistics", "bool", False),
            ("chunk_statistics_auto_exit_timeout_hours", "float", 0.0),
            ("chunk_statistics_auto_exit_target_unique_chunks", "int", 0),
            ("chunk_statistics_strategy", "str", "memory_bloom_filter"),
        ),
    ),
    ("cache events go to the controller only, not to vLLM", (("enable_kv_events", "bool", False),)),
    ("pins end exactly on time, so nothing is checked at intervals", (("pin_check_interval_sec", "int", 30),)),
    (
        "configuration comes from one file and the environment only; nothing is fetched and nothing is sent",
        (("remote_config_url", "str", None), ("app_id", "str", None)),
    ),
    (
        "only KV is cached, no hidden states",
        (
            ("enable_hidden_state_cache", "bool", False),
            ("max_hidden_state_cpu_size", "float", 2.0),
            ("hidden_state_layers", "list of int", None),
            ("hidden_states_retrieve_mode", "str", "prefix_strict"),
        ),
    ),
)

ENGINE_KEYS: dict[str, ConfigKey] = {
    key.name: key
    for key in (
        *_HONOURED,
        *(ConfigKey(*key, note, honoured=False) for note, keys in _UNSUPPORTED for key in keys),
    )
}
"""All keys of LMCache 0.5.6's engine configuration by name."""

ALIASES: dict[str, str] = {
    "controller_url": "controller_pull_url",
    "lmcache_worker_port": "lmcache_worker_ports",
    "enable_xpyd": "enable_pd",
    "nixl_peer_host": "pd_peer_host",
    "nixl_peer_init_port": "pd_peer_init_port",
    "nixl_peer_alloc_port": "pd_peer_alloc_port",
    "nixl_proxy_host": "pd_proxy_host",
    "nixl_proxy_port": "pd_proxy_port",
    "nixl_role": "pd_role",
    "plugin_locations": "runtime_plugin_locations",
    "external_backends": "storage_plugins",
}
"""Older spellings and the key that each one means."""

OLD_KEYS: dict[str, ConfigKey] = {
    key.name: key
    for key in (
        ConfigKey(
            "distributed_url",
            "str",
            None,
            "address of the peer server, as host:port; p2p_host and p2p_init_ports take precedence",
        ),
        ConfigKey(
            "nixl_peer_port",
            "int",
            None,
            "there is no NIXL here; choose a transport with transfer_channel: zmq, shm or inproc",
            honoured=False,
        ),
    )
}
"""Keys that LMCache 0.5.6 no longer has but that its documents and users still write."""
