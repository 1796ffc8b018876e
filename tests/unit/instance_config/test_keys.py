"""Every key of LMCache's engine configuration is honoured or answered with one warning that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmcache_kit.errors import ConfigError
from lmcache_kit.instance.config.keys import ALIASES, ENGINE_KEYS, OLD_KEYS, ConfigKey
from lmcache_kit.instance.config.loading import instance_config, load_config

# LMCache 0.5.6's keys, spelled out once more so that the table cannot lose one unnoticed.
NAMES = """
    chunk_size local_cpu max_local_cpu_size local_cpu_use_hugepages reserve_local_cpu_size local_disk
    local_disk_path_sharding max_local_disk_size remote_url remote_serde use_layerwise save_decode_cache
    pre_caching_hash_algorithm enable_blending blend_recompute_ratios blend_thresholds blend_check_layers
    blend_min_tokens blend_special_str retrieve_locations store_location enable_p2p p2p_host p2p_init_ports
    p2p_lookup_ports mp_host mp_port enable_controller lmcache_instance_id controller_pull_url controller_reply_url
    lmcache_worker_ports lmcache_worker_ids lmcache_worker_heartbeat_delay_time lmcache_worker_heartbeat_time
    enable_pd pd_role pd_buffer_size pd_buffer_device pd_peer_host pd_peer_init_port pd_peer_alloc_port
    pd_peer_query_port pd_proxy_host pd_proxy_port pd_allocation_timeout_sec pd_shutdown_timeout_sec
    pd_condition_poll_interval_sec pd_max_prefill_len pd_backend_mode pd_skip_proxy_notification pd_bidirectional
    transfer_channel nixl_backends nixl_buffer_size nixl_buffer_device gds_path gds_path_sharding gds_buffer_size
    maru_path maru_pool_size use_gds gds_backend audit_actual_remote_url internal_api_server_host extra_config
    save_unfull_chunk blocking_timeout_secs external_lookup_client py_enable_gc cache_policy numa_mode
    enable_async_loading internal_api_server_enabled internal_api_server_port_start priority_limit
    internal_api_server_include_index_list internal_api_server_socket_path_prefix runtime_plugin_locations
    storage_plugins remote_storage_plugins lookup_timeout_ms min_retrieve_tokens hit_miss_ratio
    lookup_server_worker_ids enable_scheduler_bypass_lookup script_allowed_imports run_script_api_enabled
    enable_lazy_memory_allocator lazy_memory_initial_ratio lazy_memory_expand_trigger_ratio lazy_memory_step_ratio
    lazy_memory_safe_size enable_chunk_statistics chunk_statistics_auto_start_statistics
    chunk_statistics_auto_exit_timeout_hours chunk_statistics_auto_exit_target_unique_chunks
    chunk_statistics_strategy enable_kv_events use_gpu_connector_v3 pin_timeout_sec pin_check_interval_sec
    remote_config_url app_id enable_hidden_state_cache max_hidden_state_cpu_size hidden_state_layers
    hidden_states_retrieve_mode
""".split()  # noqa: SIM905  (a list of a hundred lines would not be read)

OTHER: dict[str, Any] = {
    "bool": None,
    "int": 17,
    "float": 17.5,
    "str": "something",
    "list of int": [17],
    "list of float": [17.5],
    "list of str": ["something"],
}


def other_value(key: ConfigKey) -> Any:
    """A value that is not LMCache's default."""
    return not key.default if key.kind == "bool" else OTHER[key.kind]


def test_the_table_is_complete() -> None:
    assert sorted(ENGINE_KEYS) == sorted(NAMES)
    assert len(NAMES) == 108
    assert set(ALIASES.values()) <= set(ENGINE_KEYS)
    assert not set(ALIASES) & set(ENGINE_KEYS)
    assert not set(OLD_KEYS) & set(ENGINE_KEYS)


UNSUPPORTED = [key for key in (*ENGINE_KEYS.values(), *OLD_KEYS.values()) if not key.honoured]


@pytest.mark.parametrize("key", UNSUPPORTED, ids=lambda key: key.name)
def test_an_unsupported_key_warns_once_and_says_why(key: ConfigKey) -> None:
    config = instance_config({key.name: other_value(key)})
    assert config.warnings == (f"{key.name} has no effect: {key.note}",)


@pytest.mark.parametrize("key", ENGINE_KEYS.values(), ids=lambda key: key.name)
def test_lmcaches_default_does_not_warn(key: ConfigKey) -> None:
    assert instance_config({key.name: key.default}).warnings == ()


@pytest.mark.parametrize("key", ENGINE_KEYS.values(), ids=lambda key: key.name)
def test_no_value_means_not_set(key: ConfigKey) -> None:
    assert instance_config({key.name: None}) == instance_config({})


# For every honoured key: what to set, and what of the configuration must then differ from the default.
JOINED: dict[str, Any] = {
    "enable_controller": True,
    "lmcache_instance_id": "me",
    "controller_pull_url": "localhost:9001",
}
DISK = {"local_disk": "d", "max_local_disk_size": 1}
EFFECTS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "chunk_size": ({}, {"chunk_size": 16}, "hash_spec.chunk_size"),
    "local_cpu": (DISK, {"local_cpu": False}, "tiers"),
    "max_local_cpu_size": ({}, {"max_local_cpu_size": 0.5}, "tiers"),
    "local_disk": ({"max_local_disk_size": 1}, {"local_disk": "d"}, "tiers"),
    "max_local_disk_size": ({"local_disk": "d", "max_local_disk_size": 1}, {"max_local_disk_size": 2}, "tiers"),
    "remote_url": ({}, {"remote_url": "redis://h:1"}, "tiers"),
    "remote_serde": ({"remote_url": "redis://h:1"}, {"remote_serde": "zstd"}, "tiers"),
    "save_decode_cache": ({}, {"save_decode_cache": True}, "save_decode_cache"),
    "pre_caching_hash_algorithm": ({}, {"pre_caching_hash_algorithm": "blake3"}, "hash_spec.algorithm"),
    "retrieve_locations": ({}, {"retrieve_locations": ["LocalCPUBackend"]}, "retrieve_locations"),
    "store_location": ({}, {"store_location": "LocalCPUBackend"}, "store_location"),
    "p2p_host": ({}, {"p2p_host": "10.0.0.1"}, "peer.host"),
    "p2p_init_ports": ({}, {"p2p_init_ports": 8200}, "peer.port"),
    "enable_controller": ({**JOINED, "enable_controller": False}, {"enable_controller": True}, "controller"),
    "lmcache_instance_id": ({}, {"lmcache_instance_id": "other"}, "instance_id"),
    "controller_pull_url": (JOINED, {"controller_pull_url": "localhost:7"}, "controller.pull"),
    "controller_reply_url": (JOINED, {"controller_reply_url": "localhost:7"}, "controller.reply"),
    "lmcache_worker_ports": (JOINED, {"lmcache_worker_ports": 8001}, "controller.worker_port"),
    "lmcache_worker_ids": (JOINED, {"lmcache_worker_ids": 3}, "controller.worker_id"),
    "lmcache_worker_heartbeat_delay_time": (
        JOINED,
        {"lmcache_worker_heartbeat_delay_time": 10},
        "controller.first_heartbeat_seconds",
    ),
    "lmcache_worker_heartbeat_time": (JOINED, {"lmcache_worker_heartbeat_time": 2}, "controller.heartbeat_seconds"),
    "transfer_channel": ({}, {"transfer_channel": "shm"}, "peer.transport.kind"),
    "extra_config": ({}, {"extra_config": {"lmcache_kit": {"threads": 7}}}, "threads"),
    "save_unfull_chunk": ({}, {"save_unfull_chunk": False}, "hash_spec.save_unfull_chunk"),
    "blocking_timeout_secs": ({}, {"blocking_timeout_secs": 3}, "peer.timeout"),
    "cache_policy": ({}, {"cache_policy": "LFU"}, "tiers"),
    "min_retrieve_tokens": ({}, {"min_retrieve_tokens": 8}, "min_retrieve_tokens"),
    "pin_timeout_sec": ({}, {"pin_timeout_sec": 300}, "pin_ttl"),
}


def test_every_honoured_key_has_its_effect_here() -> None:
    assert set(EFFECTS) == {key.name for key in ENGINE_KEYS.values() if key.honoured}


@pytest.mark.parametrize("name", EFFECTS)
def test_an_honoured_key_changes_the_configuration(name: str) -> None:
    base, change, where = EFFECTS[name]

    def look(config: Any) -> Any:
        for part in where.split("."):
            config = getattr(config, part)
        return config

    after = instance_config({**base, **change})
    assert look(instance_config(base)) != look(after)
    assert after.warnings == ()


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_an_older_spelling_means_the_same(alias: str, name: str) -> None:
    key = ENGINE_KEYS[name]
    value = "localhost:9001" if name == "controller_pull_url" else other_value(key)
    old, new = instance_config({alias: value}), instance_config({name: value})
    assert old.values == new.values
    assert [text.replace(alias, name) for text in old.warnings] == list(new.warnings)
    assert all(text.startswith(alias) for text in old.warnings)


def test_two_spellings_that_differ_are_refused() -> None:
    with pytest.raises(ConfigError, match="controller_pull_url and controller_url"):
        instance_config({"controller_pull_url": "a:1", "controller_url": "b:2"})
    instance_config({"controller_pull_url": "a:1", "controller_url": "a:1"})


@pytest.mark.parametrize(
    ("key", "near"),
    [("chunk_sizes", "chunk_size"), ("remote_ur1", "remote_url"), ("lmcache_worker_prot", "lmcache_worker_port")],
)
def test_an_unknown_key_is_refused_with_its_nearest(key: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        instance_config({key: 1}, source="file.yaml")
    assert caught.value.message == f"file.yaml: unknown key {key!r}"
    assert near in str(caught.value.hint)


def test_an_unknown_key_with_no_near_one() -> None:
    with pytest.raises(ConfigError, match="zzzz") as caught:
        instance_config({"zzzz": 1})
    assert "extra_config.lmcache_kit" in str(caught.value.hint)


def test_keys_of_the_encoder_cache_warn() -> None:
    warnings = instance_config({"ec_chunk_size": 3, "ec": {"chunk_size": 3}}).warnings
    assert [warning.split()[0] for warning in warnings] == ["ec_chunk_size", "ec"]
    with pytest.raises(ConfigError):
        instance_config({"ec_nothing": 1})


def test_entries_of_extra_config_that_are_not_ours_warn() -> None:
    (warning,) = instance_config({"extra_config": {"valkey_mode": "cluster"}}).warnings
    assert warning.startswith("extra_config.valkey_mode has no effect")


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "c.yaml"
    path.write_text('local_disk: "file://kv/"\nmax_local_disk_size: 2\n')
    disk = load_config(path, env={}).tiers[1]
    assert disk.storage.options == {"path": str(tmp_path / "sub" / "kv")}
    assert disk.capacity_bytes == 2 * 1024**3
