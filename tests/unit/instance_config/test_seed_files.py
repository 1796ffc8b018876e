"""The two YAML files of LMCache's documents load as they stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmcache_kit.instance.config.loading import InstanceConfig, TierSpec, load_config
from lmcache_kit.instance.worker.addresses import Address

SEEDS = Path(__file__).parent / "seeds"


def both(name: str) -> list[InstanceConfig]:
    path = SEEDS / name
    return [load_config(path, env={}), load_config(env={"LMCACHE_CONFIG_FILE": str(path)})]


@pytest.mark.parametrize("name", ["lookup.yaml", "compress.yaml"])
def test_what_both_say(name: str) -> None:
    for config in both(name):
        assert config.warnings == ()
        assert config.instance_id == "lmcache_default_instance"
        assert config.hash_spec.chunk_size == 256
        assert config.hash_spec.save_unfull_chunk is True
        (tier,) = config.tiers
        assert isinstance(tier, TierSpec)
        assert (tier.storage.kind, tier.capacity_bytes) == ("memory", 5 * 1024**3)
        assert config.controller is not None
        assert config.controller.pull == Address("127.0.0.1", 9001)
        assert config.controller.reply == Address("127.0.0.1", 9002)
        assert config.controller.worker_port == 8001
        assert config.peer.serve
        assert config.peer.host == "127.0.0.1"


def test_peer_ports() -> None:
    assert [config.peer.port for config in both("lookup.yaml")] == [8002, 8002]  # distributed_url
    assert [config.peer.port for config in both("compress.yaml")] == [8200, 8200]  # p2p_init_ports
