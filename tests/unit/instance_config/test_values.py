"""Values: conversions, limits, combinations, environment, and what the errors say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from lmcache_kit.errors import ConfigError
from lmcache_kit.instance.config.loading import DEFAULT_INSTANCE_ID, LinkSpec, PluginSpec, instance_config, load_config

JOINED: dict[str, Any] = {
    "enable_controller": True,
    "lmcache_instance_id": "me",
    "controller_pull_url": "localhost:9001",
}


def test_nothing_set() -> None:
    config = instance_config({})
    assert config.instance_id == DEFAULT_INSTANCE_ID
    assert [(tier.storage.kind, tier.capacity_bytes) for tier in config.tiers] == [("memory", 5 * 1024**3)]
    assert config.controller is None
    assert not config.peer.serve
    assert config.placement == PluginSpec(kind="broadcast")
    assert config.pin_ttl is None
    assert config.warnings == ()


@pytest.mark.parametrize("value", [8001, "8001", [8001], "8001,8002", ["8001", 8002], "8001, 8002,", 8001.0])
def test_ports_are_taken_in_any_form(value: Any) -> None:
    config = instance_config({**JOINED, "lmcache_worker_ports": value})
    assert config.controller is not None
    assert config.controller.worker_port == 8001


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (True, True),
        ("true", True),
        ("1", True),
        (1, True),
        ("yes", True),
        ("ON", True),
        (False, False),
        ("False", False),
        (0, False),
        ("no", False),
    ],
)
def test_truth(value: Any, want: bool) -> None:
    assert instance_config({"save_decode_cache": value}).save_decode_cache is want


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"chunk_size": 0}, "chunk_size"),
    ({"chunk_size": -1}, "chunk_size"),
    ({"chunk_size": 2.5}, "chunk_size: 2.5 is not a whole number"),
    ({"chunk_size": True}, "chunk_size: True is not a whole number"),
    ({"chunk_size": "many"}, "chunk_size: 'many'"),
    ({"chunk_size": [256]}, "chunk_size"),
    ({"chunk_size": 10**30}, "chunk_size"),
    ({"local_cpu": "perhaps"}, "local_cpu: 'perhaps' is not true or false"),
    ({"local_cpu": 2}, "local_cpu"),
    ({"max_local_cpu_size": -1}, "max_local_cpu_size"),
    ({"max_local_cpu_size": 0}, "max_local_cpu_size"),
    ({"max_local_cpu_size": math.nan}, "max_local_cpu_size"),
    ({"max_local_cpu_size": "five"}, "max_local_cpu_size"),
    ({"local_disk": "file://", "max_local_disk_size": 1}, "local_disk"),
    ({"local_disk": "a\0b", "max_local_disk_size": 1}, "local_disk"),
    ({"remote_url": "s3://bucket"}, "remote_url: 's3://bucket' cannot be used"),
    ({"remote_url": "localhost:6379"}, "remote_url"),
    ({"remote_url": "redis://"}, "remote_url"),
    ({"pre_caching_hash_algorithm": "sha512"}, "pre_caching_hash_algorithm: unknown hash algorithm"),
    ({"min_retrieve_tokens": -1}, "min_retrieve_tokens"),
    ({"pin_timeout_sec": 0}, "pin_timeout_sec"),
    ({"blocking_timeout_secs": 0}, "blocking_timeout_secs"),
    ({"p2p_init_ports": 70000}, "p2p_init_ports"),
    ({"p2p_init_ports": "x"}, "p2p_init_ports"),
    ({"p2p_host": "a b"}, "p2p_host"),
    ({"distributed_url": "nowhere"}, "distributed_url"),
    ({"lmcache_instance_id": "a\nb"}, "lmcache_instance_id"),
    ({"lmcache_instance_id": "x" * 300}, "lmcache_instance_id"),
    ({"extra_config": "{"}, "extra_config"),
    ({"extra_config": [1]}, "extra_config"),
    ({"extra_config": {1: 2}}, "extra_config"),
    ({"extra_config": {"lmcache_kit": 3}}, "extra_config.lmcache_kit"),
    ({1: 2}, "1 is not a key"),
    ({"enable_controller": True}, "lmcache_instance_id is missing"),
    ({"enable_controller": True, "lmcache_instance_id": "me"}, "controller_pull_url is missing"),
    ({**JOINED, "controller_pull_url": "*:9001"}, "controller_pull_url: '[*]' means every interface"),
    ({**JOINED, "controller_pull_url": "0.0.0.0:9001"}, "controller_pull_url"),
    ({**JOINED, "controller_pull_url": ":9001"}, "controller_pull_url"),
    ({**JOINED, "controller_pull_url": "localhost"}, "controller_pull_url: 'localhost' is not an address"),
    ({**JOINED, "controller_pull_url": "http://localhost:1"}, "not a TCP address"),
    ({**JOINED, "controller_pull_url": "localhost:0"}, "0 is not a port"),
    ({**JOINED, "controller_pull_url": "localhost:65536"}, "65536 is not a port"),
    ({**JOINED, "controller_pull_url": "localhost:65535"}, "controller_reply_url is missing"),
    ({**JOINED, "controller_reply_url": "x"}, "controller_reply_url"),
    ({**JOINED, "lmcache_worker_ports": -1}, "lmcache_worker_ports"),
    ({**JOINED, "lmcache_worker_ids": -1}, "lmcache_worker_ids"),
    ({**JOINED, "lmcache_worker_heartbeat_time": -1}, "lmcache_worker_heartbeat_time"),
    ({**JOINED, "lmcache_worker_heartbeat_time": "soon"}, "lmcache_worker_heartbeat_time"),
]


@pytest.mark.parametrize(("values", "text"), WRONG, ids=range(len(WRONG)))
def test_wrong_values_are_named(values: dict[Any, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        instance_config(values)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("localhost:9001", "127.0.0.1"),
        ("tcp://localhost:9001", "127.0.0.1"),
        ("LOCALHOST:9001", "127.0.0.1"),
        (" 10.0.0.5:9001 ", "10.0.0.5"),
        ("controller.kv.svc:9001", "controller.kv.svc"),
        ("[::1]:9001", "::1"),
        ("tcp://[fe80::1]:9001/", "fe80::1"),
    ],
)
def test_addresses(url: str, host: str) -> None:
    config = instance_config({**JOINED, "controller_pull_url": url})
    assert config.controller is not None
    assert (config.controller.pull.host, config.controller.pull.port) == (host, 9001)
    assert config.controller.reply.port == 9002
    bracketed = f"[{host}]" if ":" in host else host
    assert config.controller.pull.endpoint == f"tcp://{bracketed}:9001"


def test_tiers_in_order_and_their_policy() -> None:
    config = instance_config(
        {
            "local_disk": "/var/kv, /mnt/kv",
            "max_local_disk_size": "0.5",
            "remote_url": "valkey://h:6379/2",
            "remote_serde": "cachegen",
            "cache_policy": "MRU",
        },
        base_dir=Path("/somewhere"),
    )
    memory, disk, remote = config.tiers
    assert [tier.storage.kind for tier in config.tiers] == ["memory", "disk", "valkey"]
    assert disk.storage.options == {"path": "/var/kv"}
    assert disk.capacity_bytes == 1024**3 // 2
    assert (remote.storage.options["url"], remote.capacity_bytes) == ("valkey://h:6379/2", None)
    assert {tier.eviction.kind for tier in config.tiers} == {"mru"}
    assert (memory.method, disk.method, remote.method) == (None, None, "cachegen")
    (warning,) = config.warnings
    assert warning.startswith("local_disk: only /var/kv is used")


def test_a_disk_without_size_warns_as_lmcache_ignores_it() -> None:
    config = instance_config({"local_disk": "kv"})
    assert [tier.storage.kind for tier in config.tiers] == ["memory"]
    assert config.warnings[0].startswith("local_disk has no effect: max_local_disk_size is 0")


def test_remote_serde_without_remote_warns() -> None:
    assert instance_config({"remote_serde": "cachegen"}).warnings[0].startswith("remote_serde has no effect")


def test_the_deadline_of_the_remote_server() -> None:
    config = instance_config({"local_cpu": False, "remote_url": "redis://h:1", "blocking_timeout_secs": 3})
    assert config.tiers[0].storage.options == {"url": "redis://h:1", "timeout": 3.0}


def test_unbounded_memory() -> None:
    assert instance_config({"max_local_cpu_size": math.inf}).tiers[0].capacity_bytes is None


@pytest.mark.parametrize("channel", ["nixl", "mock_memory"])
def test_foreign_channels_warn_and_fall_back_by_name(channel: str) -> None:
    config = instance_config({"transfer_channel": channel})
    assert config.peer.transport.kind == "zmq"
    assert config.warnings == (f"transfer_channel: there is no {channel} here; zmq is used",)


def test_more_worker_ids_than_one_warn() -> None:
    config = instance_config({**JOINED, "lmcache_worker_ids": [2, 3]})
    assert config.controller is not None
    assert config.controller.worker_id == 2
    assert len(config.warnings) == 1


def test_environment_overrides_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("chunk_size: 16\nlocal_cpu: true\n")
    env = {
        "LMCACHE_CONFIG_FILE": str(path),
        "LMCACHE_CHUNK_SIZE": "'32'",
        "LMCACHE_CACHE_POLICY": '"LFU"',
        "LMCACHE_EXTRA_CONFIG": '{"lmcache_kit": {"threads": 3}}',
        "LMCACHE_CONTROLLER_URL": "localhost:9001",
        "LMCACHE_MIN_RETRIEVE_TOKENS": "",
        "LMCACHE_KIT_PLUGINS": "x",
        "LMCACHE_EC_CHUNK_SIZE": "1",
        "LMCACHE_LOG_LEVEL": "DEBUG",
        "PATH": "/bin",
    }
    config = load_config(env=env)
    assert config.hash_spec.chunk_size == 32
    assert config.tiers[0].eviction.kind == "lfu"
    assert config.threads == 3
    assert config.values["controller_pull_url"] == "localhost:9001"
    assert config.warnings == ()
    assert load_config(env=env, overrides={"chunk_size": 64}).hash_spec.chunk_size == 64


def test_errors_of_variables_name_the_variable() -> None:
    with pytest.raises(ConfigError, match="LMCACHE_CHUNK_SIZE: 'x' is not a whole number"):
        load_config(env={"LMCACHE_CHUNK_SIZE": "x"})


def test_a_misspelt_variable_warns() -> None:
    (warning,) = load_config(env={"LMCACHE_CHUNCK_SIZE": "1"}).warnings
    assert warning == "LMCACHE_CHUNCK_SIZE has no effect; did you mean LMCACHE_CHUNK_SIZE?"


def test_warnings_are_logged_once_each(caplog: pytest.LogCaptureFixture) -> None:
    load_config(env={"LMCACHE_ENABLE_P2P": "true", "LMCACHE_NUMA_MODE": "auto"})
    assert len(caplog.records) == 2
    assert all(record.levelname == "WARNING" for record in caplog.records)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"- 1\n", "a mapping of keys to values is needed"),
        (b"a: [", "not YAML"),
        (b"\xff\xfe\x00", "not YAML"),
        (b"a: 2020-99-99\n", "not YAML"),
        (b"? [a]\n: 1\n", "not YAML"),
        (b"? !!python/object/apply:os.system [ls]\n: 1\n", "not YAML"),
        (b"chunk_size: 1\n" * 400_000, "larger than"),
    ],
)
def test_broken_files(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path, env={})
    assert "c.yaml" in caught.value.message


@pytest.mark.parametrize("name", ["missing.yaml", ".", "a\0b"])
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration file"):
        load_config(tmp_path / name, env={})


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("# nothing\n")
    assert load_config(path, env={}).values == instance_config({}).values


def ours(**settings: Any) -> dict[str, Any]:
    return {"extra_config": {"lmcache_kit": settings}}


def test_our_own_section() -> None:
    config = instance_config(
        ours(
            tiers=[
                {"kind": "memory", "capacity": "64MiB", "eviction": "arc", "eviction_options": {"a": 1}},
                {"kind": "disk", "location": "Slow", "options": {"path": "x"}, "method": "zstd"},
            ],
            placement="write_back",
            placement_options={"b": 2},
            store_method="fp8",
            methods={"zstd": {"level": 3}},
            transport={"kind": "shm", "bandwidth": "1Gbps", "latency": "2ms", "options": {"c": 3}},
            links={"tcp://h:1": {"bandwidth": "100MB/s"}, "two:2": {"latency": 1}},
            none_hash=-5,
            data_dir="state",
            threads=4,
        ),
        base_dir=Path("/base"),
    )
    first, second = config.tiers
    assert (first.capacity_bytes, first.eviction) == (64 * 2**20, PluginSpec(kind="arc", options={"a": 1}))
    assert (second.location, second.capacity_bytes, second.eviction.kind, second.method) == (
        "Slow",
        None,
        "lru",
        "zstd",
    )
    assert config.placement == PluginSpec(kind="write_back", options={"b": 2})
    assert (config.store_method, config.methods) == ("fp8", {"zstd": {"level": 3}})
    assert config.peer.transport == PluginSpec(kind="shm", options={"c": 3})
    assert config.peer.default_link == LinkSpec(bandwidth=125e6, latency=0.002)
    assert config.peer.links == {"tcp://h:1": LinkSpec(bandwidth=1e8), "two:2": LinkSpec(latency=1.0)}
    assert config.hash_spec.none_hash == -5
    assert config.data_dir == Path("/base/state")
    assert config.threads == 4


@pytest.mark.parametrize(
    ("settings", "text", "hint"),
    [
        ({"tier": []}, "extra_config.lmcache_kit: unknown key 'tier'", "tiers"),
        ({"tiers": [{"kind": "memory", "capasity": 1}]}, r"tiers\[0\]: unknown key 'capasity'", "capacity"),
        ({"tiers": [{"kind": "memory"}, {}]}, r"tiers\[1\]", ""),
        ({"tiers": [{"kind": "memory", "capacity": "much"}]}, r"tiers\[0\].capacity: 'much'", "64MiB"),
        ({"tiers": [{"kind": "memory", "capacity": True}]}, r"tiers\[0\].capacity", ""),
        ({"tiers": {}}, r"lmcache_kit.tiers", ""),
        ({"transport": {"bandwidth": "fast"}}, "transport: 'fast' is not a bandwidth", "1Gbps"),
        ({"links": {"a:1": {"latency": "x"}}}, r"links\['a:1'\]", "5ms"),
        ({"links": {"a:1": {"speed": 1}}}, "unknown key 'speed'", ""),
        ({"none_hash": 2**70}, "none_hash", ""),
        ({"none_hash": "x"}, "none_hash", ""),
        ({"threads": 0}, "threads", ""),
        ({"data_dir": ""}, "data_dir", ""),
        ({"max_pending_operations": 0}, "max_pending_operations", ""),
    ],
)
def test_our_own_section_is_strict(settings: dict[str, Any], text: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        instance_config(ours(**settings))
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("host", ["*", "0.0.0.0", "a b", "::"])
def test_a_host_that_cannot_be_announced(host: str) -> None:
    with pytest.raises(ConfigError, match="advertise_host"):
        instance_config({**JOINED, **ours(advertise_host=host)})


def test_own_tiers_and_lmcaches_keys_exclude_each_other() -> None:
    tiers = ours(tiers=[{"kind": "memory"}])
    with pytest.raises(ConfigError, match="local_disk, remote_url both describe tiers"):
        instance_config({**tiers, "local_disk": "x", "remote_url": "redis://a:1"})
    instance_config({**tiers, "local_cpu": True, "max_local_cpu_size": 5})


def test_the_data_folder_is_the_instances_own(tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path)}
    names = ["a", "..", ".", "a/b", "../x", "~", "a%2Fb", "ä b"]
    folders = [load_config(env=env, overrides={"lmcache_instance_id": name}).data_dir for name in names]
    assert len(set(folders)) == len(names)
    for folder in folders:
        assert folder.parent == tmp_path / "lmcache-kit"
        assert folder.name not in (".", "..")


def test_the_none_hash_follows_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "123")
    assert instance_config({}).hash_spec.none_hash == hash("123")
    monkeypatch.delenv("PYTHONHASHSEED")
    assert instance_config({}).hash_spec.none_hash == 0
