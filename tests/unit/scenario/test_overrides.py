from __future__ import annotations

from typing import Any

import pytest

from lmcache_kit.errors import ConfigError
from lmcache_kit.scenario import scenario_to_data
from lmcache_kit.scenario.loader import scenario_from_data


def get(value: Any, path: str) -> Any:
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("seed", "7", 7),
        ("clock", "virtual", "virtual"),
        ("instances.0.chunk_size", "64", 64),
        ("instances.0.tiers.0.capacity", "1MiB", "1MiB"),
        ("instances.0.tiers.0.options.anything", "[1, {a: b}]", [1, {"a": "b"}]),
        ("instances.0.engine.options.num_layers", "2", 2),
        ("instances.0.config.extra_config.deep.er", "true", True),
        ("instances.0.env.LANG", "C", "C"),
        ("workloads.0.max_tokens", "3", 3),
        ("controller.port", "9000", 9000),
        ("launcher.kind", "local", "local"),
        ("launcher.options.nice", "null", None),
    ],
)
def test_a_value_is_set_with_its_yaml_type(data: dict[str, Any], path: str, text: str, value: Any) -> None:
    scenario = scenario_from_data(data, [f"{path}={text}"])
    assert get(scenario_to_data(scenario), path) == value


def test_entries_are_found_by_id_and_name(data: dict[str, Any]) -> None:
    scenario = scenario_from_data(data, ["instances.a.chunk_size=5", "workloads.serve.max_tokens=2"])
    assert scenario.instances[0].chunk_size == 5
    assert scenario.workloads[0].options["max_tokens"] == 2


def test_short_forms_open_up(data: dict[str, Any]) -> None:
    data["instances"][0]["engine"] = "synthetic"
    scenario = scenario_from_data(data, ["instances.a.engine.options.seed=3", "launcher.options.x=1"])
    assert scenario.instances[0].engine is not None
    assert (scenario.instances[0].engine.kind, scenario.instances[0].engine.options) == ("synthetic", {"seed": 3})


def test_what_comes_from_the_defaults_can_be_changed_for_one_instance(data: dict[str, Any]) -> None:
    data["instance_defaults"] = {"tiers": [{"kind": "memory", "capacity": 1}, {"kind": "disk"}]}
    data["instances"].append({"id": "b", "engine": "synthetic"})
    first, second = scenario_from_data(data, ["instances.b.tiers.0.capacity=2"]).instances
    assert (first.tiers[0].capacity, second.tiers[0].capacity) == (1, 2)


def test_the_defaults_can_be_changed_for_all(data: dict[str, Any]) -> None:
    scenario = scenario_from_data(data, ["instance_defaults.chunk_size=16"])
    assert scenario.instances[0].chunk_size == 16


def test_expectations_have_dotted_keys(data: dict[str, Any]) -> None:
    scenario = scenario_from_data(data, ["expect.serve.hit_rate=>= 0.5", "expect.serve.text_equal=true"])
    assert scenario.expect == {"serve.hit_rate": ">= 0.5", "serve.text_equal": True}


def test_later_overrides_win(data: dict[str, Any]) -> None:
    assert scenario_from_data(data, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("sede=1", "did you mean 'seed'?"),
        ("instances.0.chunksize=1", "did you mean 'instances.0.chunk_size'?"),
        ("instances.7.chunk_size=1", None),
        ("instances.aa.chunk_size=1", "did you mean 'instances.a'?"),
        ("instances.0.tiers.0.kind.x=1", None),
        ("seed.x=1", None),
        ("links.0.bandwidth=1Gbps", None),
        ("controller.host.name=x", None),
        (".seed=1", None),
        ("instances..chunk_size=1", None),
        ("seed", "write it like"),
        ("=3", "write it like"),
        ("seed=[", None),
    ],
)
def test_an_unknown_path_is_refused(data: dict[str, Any], override: str, hint: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        scenario_from_data(data, [override])
    assert override.partition("=")[0] in caught.value.message or "value" in caught.value.message
    if hint is not None:
        assert hint in (caught.value.hint or "")
