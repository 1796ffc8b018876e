"""What cannot be simulated is refused by its name, before anything runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from lmcache_kit.contracts.records import EnginePlugin, WorkloadPlugin
from lmcache_kit.errors import ConfigError, LMCacheKitError
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.scenario.loader import scenario_from_data
from lmcache_kit.sim.costs import CodecCosts, Costs, TierCosts, load_costs
from lmcache_kit.sim.runner import VirtualRun

ALONE: dict[str, Any] = {
    "name": "play",
    "kind": "traffic",
    "contents": {"kind": "independent", "prompt_tokens": 8, "block_size": 4},
    "arrivals": {"kind": "poisson", "rate": 10},
    "requests": 2,
}


def run(folder: Path, registry: PluginRegistry | None = None, **changes: Any) -> dict[str, Any]:
    data = {
        "name": "refused",
        "clock": "virtual",
        "instance_defaults": {
            "engine": {"kind": "synthetic", "options": {"num_layers": 1, "num_kv_heads": 1, "head_dim": 8}},
            **changes.pop("instance_defaults", {}),
        },
        "instances": [{"id": "a"}],
        "workloads": [ALONE],
        "reporters": [],
        **changes,
    }
    plugins = registry or PluginRegistry(allow=[])
    return VirtualRun(scenario_from_data(data), plugins, folder / "out", progress=lambda line: None).run()


def test_what_is_asked_for_here_runs_otherwise(tmp_path: Path) -> None:
    assert run(tmp_path)["status"] == "passed"


@pytest.mark.parametrize(
    ("costs", "said"),
    [
        ({"engines": {"synthetic": {"profile": "h100-llama-3.1-8c"}}}, "h100-llama-3.1-8c"),
        ({"engines": {"synthetic": {"profile": ["h100"]}}}, "profile"),
        ({"engines": {"synthetic": {"prefil_token": 1}}}, "prefil_token"),
        ({"engines": {"synthetic": {"prefill_token": -1}}}, "prefill_token"),
        ({"engines": {"synthetic": {"prefill_token": "fast"}}}, "prefill_token"),
        ({"engines": {"synthetic": {"prefill_token": float("nan")}}}, "prefill_token"),
        ({"engines": {"synthetic": {"prefill_token": float("inf")}}}, "prefill_token"),
        ({"codecs": {"naive": {"ratio": 0}}}, "ratio"),
        ({"codecs": {"naive": {"decode_gbps": 0}}}, "decode_gbps"),
        ({"codecs": {"naive": {"speed": 1}}}, "speed"),
        ({"tiers": {"LocalCPUBackend": {"read_gbps": 0}}}, "read_gbps"),
        ({"tiers": {"LocalCPUBackend": {"read_gbps": float("nan")}}}, "read_gbps"),
        ({"threads": 0}, "threads"),
        ({"report_seconds": -1}, "report_seconds"),
        ({"report_seconds": float("nan")}, "report_seconds"),
        ({"request_seconds": float("inf")}, "request_seconds"),
        ({"latency": 1}, "latency"),
        ("missing.json", "missing.json"),
    ],
)
def test_costs_that_make_no_sense_are_named(tmp_path: Path, costs: Any, said: str) -> None:
    with pytest.raises(LMCacheKitError) as caught:
        run(tmp_path, costs=costs)
    assert said in caught.value.detail
    assert "cost" in caught.value.detail or "profile" in caught.value.detail


@pytest.mark.parametrize("text", ["[1, 2", "- 1\n- 2\n", "3", "\xff"])
def test_a_file_of_costs_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "costs.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="costs"):
        load_costs("costs.yaml", tmp_path)


def test_a_tier_and_a_method_without_costs_are_named() -> None:
    with pytest.raises(ConfigError, match="tier 'Somewhere'"):
        Costs().tier("Somewhere", "RemoteBackend")
    with pytest.raises(ConfigError, match="compression method 'mine'"):
        Costs().codec("mine")
    with pytest.raises(ConfigError, match="engine 'vllm'"):
        Costs().engine("vllm", "m", None)


def test_costs_are_looked_up_from_the_most_to_the_least_particular() -> None:
    costs = Costs(
        engines={"e/m": {"prefill_base": 1.0}, "e": {"prefill_base": 2.0}},
        tiers={"Deep": TierCosts(read_gbps=3), "LocalDiskBackend": TierCosts(read_gbps=4)},
        codecs={"fp8": CodecCosts(ratio=7)},
    )
    declared = {"prefill_base": 9.0}
    assert costs.engine("e", "m", declared).prefill_base == 1.0
    assert costs.engine("e", "other", declared).prefill_base == 2.0
    assert costs.engine("f", "m", declared).prefill_base == 9.0
    assert costs.tier("Deep", "LocalDiskBackend").read_gbps == 3
    assert costs.tier("Deeper", "LocalDiskBackend").read_gbps == 4
    assert costs.tier("LocalCPUBackend", "LocalCPUBackend") == Costs().tier("x", "LocalCPUBackend")
    assert costs.codec("fp8").ratio == 7
    profile = Costs(engines={"e": {"profile": "h100-llama-3.1-8b", "decode_base": 5.0}})
    assert profile.engine("e", "m", None).batched
    assert profile.engine("e", "m", None).decode_base == 5.0


def test_decoded_tokens_are_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"instances\.a\.config: save_decode_cache does not run"):
        run(tmp_path, instance_defaults={"config": {"save_decode_cache": True}})


def test_nor_when_a_variable_asks_for_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="save_decode_cache does not run"):
        run(tmp_path, instances=[{"id": "a", "env": {"LMCACHE_SAVE_DECODE_CACHE": "true"}}])


def test_a_scenario_of_the_other_clock_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="wall"):
        run(tmp_path, clock="wall")


def test_a_workload_that_runs_on_the_wall_only_is_refused(tmp_path: Path) -> None:
    registry = PluginRegistry(allow=[])
    record = registry.get(WorkloadPlugin, "traffic")
    usual = registry.get

    def get(kind: Any, name: str) -> Any:
        return replace(record, clocks=frozenset({"wall"})) if name == "traffic" else usual(kind, name)

    with (
        patch.object(registry, "get", get),
        pytest.raises(ConfigError, match="workload 'traffic' does not run under the virtual clock"),
    ):
        run(tmp_path, registry)


def test_an_engine_that_says_nothing_of_its_costs_is_refused(tmp_path: Path) -> None:
    registry = PluginRegistry(allow=[])
    record = registry.get(EnginePlugin, "synthetic")
    usual = registry.get

    class Silent:
        def __init__(self, engine: Any) -> None:
            self.info, self.close, self.tokenize = engine.info, engine.close, engine.tokenize

    def make(options: Any, model: str) -> Any:
        return Silent(record.factory(options, model))

    def get(kind: Any, name: str) -> Any:
        return replace(record, factory=make) if name == "synthetic" else usual(kind, name)

    with (
        patch.object(registry, "get", get),
        pytest.raises(ConfigError, match="engine 'synthetic' does not say") as caught,
    ):
        run(tmp_path, registry)
    assert "calibrate" in (caught.value.hint or "")


def test_a_method_without_costs_is_refused_where_it_would_be_used(tmp_path: Path) -> None:
    """zstd has usual costs; a method that nobody measured has none, whether it is the store's or a tier's."""
    with pytest.raises(LMCacheKitError):
        run(tmp_path, instance_defaults={"tiers": [{"kind": "memory", "method": "unheard_of"}]})
