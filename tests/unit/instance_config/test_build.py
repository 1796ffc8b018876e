"""From a configuration to a working store: tiers, codecs, placement, and errors that name the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmcache_kit.clock import WallClock
from lmcache_kit.contracts.engine import EngineInfo
from lmcache_kit.errors import ConfigError
from lmcache_kit.instance.build import build_store, build_tiers, build_transport
from lmcache_kit.instance.config.loading import instance_config
from lmcache_kit.instance.runtime import InstanceRuntime
from lmcache_kit.kv.blob import peek_header
from lmcache_kit.kv.layout import KVLayout, KVTensor

LAYOUT = KVLayout(num_layers=2, num_kv_heads=2, head_dim=8, dtype="float32")
INFO = EngineInfo(
    model="tiny", fingerprint="tiny-1", layout=LAYOUT, max_model_len=4096, eos_token_ids=frozenset(), vocab_size=1000
)
TOKENS = list(range(10))
CPU, DISK = "LocalCPUBackend", "LocalDiskBackend"
BOTH = {"chunk_size": 4, "local_disk": "kv", "max_local_disk_size": 1}


def kv() -> KVTensor:
    made = KVTensor.empty(LAYOUT, len(TOKENS))
    made.data[:] = np.arange(len(TOKENS), dtype=np.float32)[None, None, :, None, None]
    return made


def ours(**settings: Any) -> dict[str, Any]:
    return {"extra_config": {"lmcache_kit": settings}}


async def stored(tmp_path: Path, keys: dict[str, Any], *, check: Any = None) -> dict[str, list[str]]:
    """Codecs of what a save wrote, by location; ``check`` is given the runtime."""
    config = instance_config(keys, base_dir=tmp_path)
    runtime = InstanceRuntime(config, INFO, clock=WallClock())
    await runtime.start()
    try:
        await runtime.store.save(TOKENS, kv())
        found = {}
        for location in runtime.store.locations():
            blobs = [await runtime.store.read(location, key) for key in runtime.store.contents(location)]
            found[location] = [peek_header(blob).codec for blob in blobs if blob is not None]
        loaded = await runtime.store.load_prefix(TOKENS)
        if config.retrieve_locations is None:
            assert loaded.kv is not None
            np.testing.assert_array_equal(loaded.kv.data, kv().data)
        if check is not None:
            await check(runtime)
        return found
    finally:
        await runtime.close()


async def test_every_tier_is_written_as_lmcache_does(tmp_path: Path) -> None:
    assert await stored(tmp_path, BOTH) == {CPU: ["naive"] * 3, DISK: ["naive"] * 3}
    assert list((tmp_path / "kv").rglob("*.blob"))


async def test_store_method(tmp_path: Path) -> None:
    assert await stored(tmp_path, {**BOTH, **ours(store_method="zstd")}) == {CPU: ["zstd"] * 3, DISK: ["zstd"] * 3}


async def test_a_tiers_own_method(tmp_path: Path) -> None:
    tiers = [{"kind": "memory", "capacity": "1MiB"}, {"kind": "disk", "options": {"path": "x"}, "method": "zstd"}]
    found = await stored(tmp_path, {"chunk_size": 4, **ours(tiers=tiers, data_dir="state")})
    assert found == {CPU: ["naive"] * 3, DISK: ["zstd"] * 3}
    assert list((tmp_path / "state" / "x").rglob("*.blob"))


async def test_store_location(tmp_path: Path) -> None:
    assert await stored(tmp_path, {**BOTH, "store_location": DISK}) == {CPU: [], DISK: ["naive"] * 3}


async def test_retrieve_locations(tmp_path: Path) -> None:
    async def check(runtime: InstanceRuntime) -> None:
        assert {hit.location for hit in (await runtime.store.load_prefix(TOKENS)).hits} == {DISK}
        await runtime.store.clear(DISK)
        assert (await runtime.store.load_prefix(TOKENS)).num_tokens == 0
        assert runtime.store.lookup(TOKENS) == {CPU: 10, DISK: 0}
        # What only an unread tier holds is stored anew.
        assert (await runtime.store.save(TOKENS, kv())).by_location == {DISK: 10}

    await stored(tmp_path, {**BOTH, "retrieve_locations": [DISK]}, check=check)


async def test_the_whole_configuration_reaches_the_store(tmp_path: Path) -> None:
    config = instance_config({**BOTH, "cache_policy": "ARC", "min_retrieve_tokens": 11}, base_dir=tmp_path)
    store = build_store(config, INFO, clock=WallClock(), on_change=lambda change: None)
    await store.open()
    await store.save(TOKENS, kv())
    assert (await store.load_prefix(TOKENS)).num_tokens == 0  # shorter than min_retrieve_tokens
    assert store.stats()["tiers"][DISK]["capacity_bytes"] == 1024**3
    await store.close()


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"cache_policy": "LRUX"}, "cache_policy or eviction: unknown eviction plugin 'lrux'"),
        ({"transfer_channel": "pigeon"}, "transfer_channel .*: unknown transport plugin 'pigeon'"),
        ({"local_cpu": False}, "there is no tier"),
        ({"store_location": DISK}, "store_location: unknown location 'LocalDiskBackend'"),
        ({"retrieve_locations": ["x"]}, "retrieve_locations: unknown location 'x'"),
        (ours(tiers=[]), "there is no tier"),
        (ours(tiers=[{"kind": "tape"}]), "tiers: unknown storage plugin 'tape'"),
        (ours(tiers=[{"kind": "memory", "options": {"speed": 1}}]), "tiers: storage plugin 'memory' has no option"),
        (ours(tiers=[{"kind": "memory"}, {"kind": "memory"}]), "two tiers are called LocalCPUBackend"),
        (ours(tiers=[{"kind": "memory", "method": "gzip"}]), "method: unknown compression method 'gzip'"),
        (ours(placement="anywhere"), "placement: unknown placement plugin 'anywhere'"),
        (ours(placement_options={"x": 1}), "placement: placement plugin 'broadcast' has no option 'x'"),
        (ours(store_method="gzip"), "store_method: unknown compression method 'gzip'"),
        (ours(methods={"gzip": {}}), "methods: unknown compression method 'gzip'"),
        (ours(methods={"zstd": {"levle": 1}}), "methods: compression plugin 'zstd' has no option 'levle'"),
        (ours(transport={"kind": "zmq", "options": {"x": 1}}), "transport plugin 'zmq' has no option 'x'"),
    ],
)
async def test_mistakes_name_the_key(tmp_path: Path, keys: dict[str, Any], text: str) -> None:
    config = instance_config(keys, base_dir=tmp_path)
    with pytest.raises(ConfigError, match=text):
        InstanceRuntime(config, INFO, clock=WallClock())


async def test_a_broken_later_tier_closes_the_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmcache_kit.builtin.storage.memory import MemoryBackend

    closed: list[object] = []
    monkeypatch.setattr(MemoryBackend, "close", lambda self: closed.append(self))
    config = instance_config(ours(tiers=[{"kind": "memory"}, {"kind": "tape"}]), base_dir=tmp_path)
    with pytest.raises(ConfigError):
        build_tiers(config)
    assert len(closed) == 1


@pytest.mark.parametrize(("channel", "scheme"), [("zmq", "tcp"), ("shm", "shm"), ("inproc", "inproc")])
async def test_peers_over_every_transport(tmp_path: Path, channel: str, scheme: str) -> None:
    runtimes = []
    for name in ("a/1", "b"):
        keys = {"chunk_size": 4, "lmcache_instance_id": name, "transfer_channel": channel, "p2p_init_ports": 0}
        runtime = InstanceRuntime(instance_config(keys, base_dir=tmp_path), INFO, clock=WallClock())
        await runtime.start()
        runtimes.append(runtime)
    one, two = runtimes
    try:
        assert build_transport(one.config.peer)[0] == scheme
        assert one.peer_url is not None
        assert two.peer_url is not None
        assert two.peer_url.startswith(f"{scheme}://")
        assert one.peer_url != two.peer_url
        await one.store.save(TOKENS, kv())
        one.store.start_move("e", CPU, two.peer_url, CPU, TOKENS, copy=True)
        await one.store.drain()
        assert one.store.job("e").status == "done", one.store.job("e")
        assert two.store.lookup(TOKENS) == {CPU: 10}
    finally:
        for runtime in runtimes:
            await runtime.close()


async def test_a_peer_port_in_use_names_the_key(tmp_path: Path) -> None:
    one = InstanceRuntime(instance_config({"p2p_init_ports": 0}, base_dir=tmp_path), INFO, clock=WallClock())
    await one.start()
    try:
        assert one.peer_url is not None
        port = int(one.peer_url.rpartition(":")[2])
        two = InstanceRuntime(instance_config({"p2p_init_ports": port}, base_dir=tmp_path), INFO, clock=WallClock())
        with pytest.raises(ConfigError) as caught:
            await two.start()
        assert "p2p_init_ports" in str(caught.value.hint)
    finally:
        await one.close()


async def test_an_unreachable_backend_is_unhealthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmcache_kit.builtin.storage.disk import DiskBackend
    from lmcache_kit.errors import UnavailableError

    runtime = InstanceRuntime(instance_config(BOTH, base_dir=tmp_path), INFO, clock=WallClock())
    await runtime.start()
    try:
        assert await runtime.unreachable_tiers() == 0

        def gone(self: object) -> Any:
            raise UnavailableError("the disk is gone")

        monkeypatch.setattr(DiskBackend, "health", gone)
        assert await runtime.unreachable_tiers() == 1
    finally:
        await runtime.close()
