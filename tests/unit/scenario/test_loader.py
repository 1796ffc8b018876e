from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmcache_kit.errors import ConfigError
from lmcache_kit.scenario import dump_scenario, load_scenario, parse_scenario, scenario_to_data, shipped_scenarios
from lmcache_kit.scenario.loader import scenario_from_data


def test_defaults(data: dict[str, Any]) -> None:
    scenario = scenario_from_data(data)
    instance = scenario.instances[0]
    assert (scenario.clock, scenario.seed, scenario.launcher.kind) == ("wall", 0, "local")
    assert (instance.chunk_size, instance.hash_algorithm, instance.save_unfull_chunk) == (256, "builtin", True)
    assert instance.tiers[0].kind == "memory"
    assert scenario.workloads[0].options == {"prompts": ["hello"]}


@pytest.mark.parametrize(
    ("change", "path", "near"),
    [
        (lambda data: data.update(instnaces=[]), "instnaces", "instances"),
        (lambda data: data["instances"][0].update(chunk_sise=1), "instances.0.chunk_sise", "instances.0.chunk_size"),
        (lambda data: data["instances"][0]["engine"].update(modle="x"), "instances.0.engine.modle", "engine.model"),
        (lambda data: data.update(controller={"prot": 1}), "controller.prot", "controller.port"),
        (
            lambda data: data["instances"][0].update(tiers=[{"kind": "memory", "capasity": 1}]),
            "instances.0.tiers.0.capasity",
            "instances.0.tiers.0.capacity",
        ),
        (
            lambda data: data.update(instance_defaults={"tires": []}),
            "instance_defaults.tires",
            "instance_defaults.tiers",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_its_path_and_the_nearest_one(
    data: dict[str, Any], change: Any, path: str, near: str
) -> None:
    change(data)
    with pytest.raises(ConfigError) as caught:
        scenario_from_data(data, source="x.yaml")
    assert f"'{path}'" in caught.value.message
    assert caught.value.message.startswith("x.yaml: ")
    assert near in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda data: data["instances"][0].update(chunk_size="64"), "instances.0.chunk_size"),
        (lambda data: data["instances"][0].update(chunk_size=0), "instances.0.chunk_size"),
        (lambda data: data["instances"][0].update(chunk_size=True), "instances.0.chunk_size"),
        (lambda data: data.update(seed=-1), "seed"),
        (lambda data: data.update(seed=2**32), "seed"),
        (lambda data: data.update(clock="sundial"), "clock"),
        (lambda data: data.update(instances=[]), "instances"),
        (lambda data: data.update(name="../../etc"), "name"),
        (lambda data: data["instances"][0].update(id="a/b"), "instances.0.id"),
        (lambda data: data.update(instance_defaults={"chunk_size": "x"}), "instance_defaults.chunk_size"),
        (lambda data: data.update(links=[{"between": ["a"]}]), "links.0.between"),
        (lambda data: data["workloads"][0].update(name="has.dot"), "workloads.0.name"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(data: dict[str, Any], change: Any, path: str) -> None:
    change(data)
    with pytest.raises(ConfigError, match=rf"(^|: ){path}: "):
        scenario_from_data(data)


def test_defaults_are_merged_mapping_by_mapping(data: dict[str, Any]) -> None:
    data["instance_defaults"] = {
        "chunk_size": 32,
        "engine": {"kind": "synthetic", "options": {"num_layers": 2, "seed": 1}},
        "tiers": [{"kind": "memory"}, {"kind": "disk"}],
    }
    data["instances"] = [
        {"id": "a", "engine": {"options": {"seed": 9}}},
        {"id": "b", "engine": {"kind": "other"}, "tiers": ["disk"], "chunk_size": 8},
    ]
    first, second = scenario_from_data(data).instances
    assert first.engine is not None
    assert first.engine.options == {"num_layers": 2, "seed": 9}
    assert [tier.kind for tier in first.tiers] == ["memory", "disk"]
    assert second.engine is not None
    assert second.engine.options == {}, "options belong to the kind they were written for"
    assert ([tier.kind for tier in second.tiers], second.chunk_size, first.chunk_size) == (["disk"], 8, 32)


def test_count_makes_many(data: dict[str, Any]) -> None:
    data["instances"] = [{"id": "cell", "count": 3, "engine": "synthetic"}, {"id": "solo", "engine": "synthetic"}]
    assert [each.id for each in scenario_from_data(data).instances] == ["cell-0", "cell-1", "cell-2", "solo"]


def test_count_with_a_fixed_port_is_refused(data: dict[str, Any]) -> None:
    data["instances"] = [{"id": "cell", "count": 2, "engine": "synthetic", "port": 8000}]
    with pytest.raises(ConfigError, match="fixed port"):
        scenario_from_data(data)


@pytest.mark.parametrize("what", ["instances", "workloads"])
def test_names_are_used_once(data: dict[str, Any], what: str) -> None:
    data[what] = data[what] * 2
    with pytest.raises(ConfigError, match="used 2 times"):
        scenario_from_data(data)


@pytest.mark.parametrize("name", sorted(shipped_scenarios()))
def test_a_resolved_scenario_loads_to_itself(name: str) -> None:
    scenario = load_scenario(shipped_scenarios()[name])
    again = parse_scenario(dump_scenario(scenario))
    assert scenario_to_data(again) == scenario_to_data(scenario)


def test_relative_paths_start_at_the_file(tmp_path: Path, data: dict[str, Any]) -> None:
    from lmcache_kit.scenario.document import dump

    file = tmp_path / "mine.yaml"
    file.write_text(dump(data))
    assert load_scenario(file).base_dir == str(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a mapping"),
        ("[1, 2]", "must be a mapping"),
        ("name: [", "line 1"),
        ("name: a\nname: b", "stands twice"),
        ("a: &a [*a]", "refers to itself"),
        ("day: 2024-01-01", "quote it"),
        ("1: x", "not text"),
        ("x: !!python/object/apply:os.system [ls]", "constructor"),
        ("\x00", "not YAML"),
        ("[" * 3000, "deep"),
    ],
)
def test_a_document_that_is_no_scenario(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_scenario(text, source="odd.yaml")
    assert message in caught.value.detail
    assert "odd.yaml" in caught.value.message


def test_aliases_that_multiply_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(ConfigError, match="too large"):
        parse_scenario("\n".join(lines))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml cannot be read"):
        load_scenario(tmp_path / "gone.yaml")
