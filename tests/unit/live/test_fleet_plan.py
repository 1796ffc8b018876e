from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lmcache_kit.instance.config.loading import load_config
from lmcache_kit.live import OutputFolder
from lmcache_kit.live.fleet_plan import FleetPlan, plan_fleet
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.scenario.loader import scenario_from_data
from lmcache_kit.scenario.validate import validate

BUILT_IN = PluginRegistry(allow=[])
DATA: dict[str, Any] = {
    "name": "planned",
    "seed": 5,
    "instance_defaults": {
        "engine": {"kind": "synthetic", "options": {"num_layers": 2, "dtype": "float16"}},
        "chunk_size": 16,
        "tiers": [{"kind": "memory", "capacity": "3MiB", "eviction": "fifo"}, {"kind": "disk", "method": "fp8"}],
        "placement": "demote",
        "config": {"min_retrieve_tokens": 7, "extra_config": {"lmcache_kit": {"store_method": "zstd"}}},
        "env": {"SOME": "thing"},
    },
    "instances": [{"id": "a"}, {"id": "b", "hash_algorithm": "sha256_cbor", "save_unfull_chunk": False}],
    "links": [{"between": ["b", "a"], "bandwidth": "1Gbps", "latency": "3ms"}],
    "workloads": [{"name": "serve", "kind": "completions", "prompts": ["x"]}],
}


@pytest.fixture
def folder(tmp_path: Path) -> OutputFolder:
    folder = OutputFolder(tmp_path / "out")
    folder.prepare()
    return folder


def planned(folder: OutputFolder, *overrides: str) -> FleetPlan:
    import copy

    scenario = scenario_from_data(copy.deepcopy(DATA), overrides)
    validate(scenario, BUILT_IN)
    return plan_fleet(scenario, BUILT_IN, folder)


def config_of(plan: FleetPlan, index: int) -> Path:
    argv = list(plan.instances[index].spec.argv)
    return Path(argv[argv.index("--config") + 1])


def test_the_instance_reads_what_the_scenario_says(folder: OutputFolder) -> None:
    plan = planned(folder)
    first, second = (load_config(config_of(plan, index), env={}) for index in (0, 1))
    assert (first.instance_id, first.hash_spec.chunk_size, first.hash_spec.algorithm) == ("a", 16, "builtin")
    assert (second.hash_spec.algorithm, second.hash_spec.save_unfull_chunk) == ("sha256_cbor", False)
    assert [tier.method for tier in first.tiers] == [None, "fp8"]
    assert [(tier.storage.kind, tier.location, tier.capacity_bytes) for tier in first.tiers] == [
        ("memory", "LocalCPUBackend", 3 * 2**20),
        ("disk", "LocalDiskBackend", None),
    ]
    assert first.tiers[0].eviction.kind == "fifo"
    assert (first.placement.kind, first.store_method, first.min_retrieve_tokens) == ("demote", "zstd", 7)
    assert first.controller is not None
    monitor = plan.controller.argv[list(plan.controller.argv).index("--monitor-port") + 1]
    assert (first.controller.pull.port, first.controller.reply.port) == (int(monitor), int(monitor) + 1)
    assert first.data_dir != second.data_dir
    assert first.warnings == ()


def test_a_link_is_shaped_on_both_sides(folder: OutputFolder) -> None:
    plan = planned(folder)
    for here, there in ((0, 1), (1, 0)):
        links = load_config(config_of(plan, here), env={}).peer.links
        assert list(links) == [plan.instances[there].peer_url]
        assert links[plan.instances[there].peer_url].bandwidth == 1.25e8
        assert links[plan.instances[there].peer_url].latency == 0.003


def test_every_port_is_chosen_once(folder: OutputFolder) -> None:
    plan = planned(folder)
    ports = []
    for each in plan.instances:
        settings = yaml.safe_load(config_of(plan, 0).read_text())
        ports += [int(each.url.rpartition(":")[2]), int(each.peer_url.rpartition(":")[2])]
    ports += [settings["lmcache_worker_ports"], int(plan.controller_url.rpartition(":")[2])]
    assert len(set(ports)) == len(ports)


def test_fixed_ports_are_kept(folder: OutputFolder) -> None:
    from lmcache_kit.live.ports import PortPicker

    free = PortPicker().pick(0, host="127.0.0.1", setting="x", span=5)
    plan = planned(
        folder,
        f"controller.monitor_port={free}",
        f"controller.port={free + 3}",
        f"instances.b.port={free + 4}",
    )
    assert plan.controller_url.endswith(f":{free + 3}")
    assert plan.instances[1].url.endswith(f":{free + 4}")


def test_engine_options_and_environment_reach_the_process(folder: OutputFolder) -> None:
    spec = planned(folder).instances[0].spec
    argv = list(spec.argv)
    given = [argv[place + 1] for place, word in enumerate(argv) if word == "--engine-option"]
    assert given == ["num_layers=2", 'dtype="float16"']
    assert argv[argv.index("--model") + 1] == "synthetic"
    assert spec.env == {"PYTHONHASHSEED": "5", "SOME": "thing"}
    assert planned(folder).controller.env == {"PYTHONHASHSEED": "5"}


def test_a_transport_of_one_host_gets_a_name(folder: OutputFolder) -> None:
    plan = planned(folder, "instances.a.transport=shm", "instances.b.transport=shm")
    assert plan.instances[0].peer_url.startswith("shm://a-")
    assert load_config(config_of(plan, 0), env={}).peer.address == plan.instances[0].peer_url
