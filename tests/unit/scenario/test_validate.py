from __future__ import annotations

from typing import Any

import pytest

from lmcache_kit.errors import ConfigError
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.scenario import load_scenario, shipped_scenarios, validate
from lmcache_kit.scenario.loader import scenario_from_data
from lmcache_kit.scenario.validate import plugins_used

BUILT_IN = PluginRegistry(allow=[])


def lookup(**options: Any) -> dict[str, Any]:
    return {"name": "look", "kind": "lookup", "of": "serve", **options}


def test_a_valid_scenario_gives_its_workloads(data: dict[str, Any]) -> None:
    data["workloads"].append(lookup())
    made = validate(scenario_from_data(data), BUILT_IN)
    assert [type(each).__name__ for each in made] == ["CompletionsWorkload", "LookupWorkload"]


@pytest.mark.parametrize("name", [name for name in sorted(shipped_scenarios()) if name in ("synthetic", "tiers")])
def test_shipped_scenarios_of_the_core_are_valid(name: str) -> None:
    validate(load_scenario(shipped_scenarios()[name]), BUILT_IN)


@pytest.mark.parametrize(
    ("override", "path", "hint"),
    [
        ("launcher.kind=locl", "launcher", "did you mean 'local'?"),
        ("launcher.options.x=1", "launcher", "its options: none"),
        ("reporters=[htm]", "reporters", "did you mean 'html'?"),
        ("instances.a.engine.kind=synthetik", "instances.a.engine", "did you mean 'synthetic'?"),
        ("instances.a.engine.kind=transformers", "instances.a.engine", "pip install lmcache-kit-transformers"),
        ("instances.a.engine.options.num_layer=1", "instances.a.engine", "did you mean 'num_layers'?"),
        ("instances.a.engine.options.num_layers=many", "instances.a.engine", None),
        ("instances.a.tiers=[ram]", "instances.a.tiers.0", "known:"),
        ("instances.a.tiers=[memory, memory]", "instances.a.tiers.1", "name another"),
        ("instances.a.tiers=[{kind: memory, capacity: 3 parsecs}]", "instances.a.tiers.0.capacity", "MiB"),
        ("instances.a.tiers=[{kind: memory, eviction: lruu}]", "instances.a.tiers.0.eviction", "did you mean 'lru'?"),
        ("instances.a.placement=brodcast", "instances.a.placement", "did you mean 'broadcast'?"),
        ("instances.a.transport=zmqq", "instances.a.transport", "did you mean 'zmq'?"),
        ("instances.a.transport=inproc", "instances.a.transport", "shm, zmq"),
        ("instances.a.transport.bandwidth=fast", "instances.a.transport.bandwidth", "Gbps"),
        ("instances.a.hash_algorithm=md5", "instances.a.hash_algorithm", "builtin"),
        ("links=[{between: [a, z]}]", "links.0.between", "known: a"),
        ("links=[{between: [a, a]}]", "links.0.between", None),
        ("workloads.serve.kind=completion", "workloads.serve", "did you mean 'completions'?"),
        ("workloads.serve.max_token=1", "workloads.serve", "did you mean 'max_tokens'?"),
        ("workloads.serve.max_tokens=0", "workloads.serve", None),
        ("workloads.serve.instances=[b]", "workloads.serve", "known: a"),
        ("workloads.serve.prompts=[{text: x, instance: q}]", "workloads.serve", "known: a"),
        ("workloads.serve.prompts=[]", "workloads.serve", "give prompts"),
        ("workloads.serve.prompts_file=x.txt", "workloads.serve", "keep one of"),
        ("workloads.serve.compare_to=nobody", "workloads.serve", None),
    ],
)
def test_what_does_not_fit_is_refused_by_path(data: dict[str, Any], override: str, path: str, hint: str | None) -> None:
    scenario = scenario_from_data(data, [override])
    with pytest.raises(ConfigError) as caught:
        validate(scenario, BUILT_IN)
    assert caught.value.message.startswith(path)
    if hint is not None:
        assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("workload", "message"),
    [
        (lookup(of="later"), "unknown earlier workload 'later'"),
        ({"name": "c", "kind": "compress", "of": "serve", "method": "zsdt"}, "unknown compression 'zsdt'"),
        ({"name": "c", "kind": "compress", "of": "serve", "method": "zstd", "location": "Disk"}, "unknown location"),
        (
            {"name": "m", "kind": "move", "of": "serve", "from": {"instance": "a"}, "to": {"instance": "b"}},
            "unknown instance 'b'",
        ),
        ({"name": "u", "kind": "unpin", "of": "serve", "ttl_seconds": 1}, "takes no ttl_seconds"),
    ],
)
def test_what_a_workload_names_must_exist(data: dict[str, Any], workload: dict[str, Any], message: str) -> None:
    data["workloads"].append(workload)
    with pytest.raises(ConfigError, match=message):
        validate(scenario_from_data(data), BUILT_IN)


def test_an_instance_needs_an_engine(data: dict[str, Any]) -> None:
    del data["instances"][0]["engine"]
    with pytest.raises(ConfigError, match=r"instances\.a has no engine"):
        validate(scenario_from_data(data), BUILT_IN)


def test_plugins_used_are_listed_once(data: dict[str, Any]) -> None:
    data["instances"][0]["count"] = 3
    used = plugins_used(scenario_from_data(data))
    assert len(used) == len(set(used))
    assert {("engine", "synthetic"), ("storage", "memory"), ("workload", "completions")} <= set(used)


def test_compression_methods_are_plugins_that_a_scenario_uses(data: dict[str, Any]) -> None:
    data["instances"][0]["tiers"] = [{"kind": "memory", "method": "fp8"}]
    data["workloads"].append({"name": "pack", "kind": "compress", "of": data["workloads"][0]["name"], "method": "zstd"})
    scenario = scenario_from_data(data)
    used = plugins_used(scenario, validate(scenario, BUILT_IN))
    assert [name for kind, name in used if kind == "compression"] == ["fp8", "zstd"]
    data["instances"][0]["tiers"][0]["method"] = "fp9"
    with pytest.raises(ConfigError, match=r"instances\.a\.tiers\.0\.method: .*'fp9'"):
        validate(scenario_from_data(data), BUILT_IN)
