from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import yaml

from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.scenario import scenario_schema, shipped_scenarios

BUILT_IN = PluginRegistry(allow=[])


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = scenario_schema(BUILT_IN)
    json.dumps(schema)
    return jsonschema.validators.validator_for(schema)(schema)


@pytest.mark.parametrize("name", [name for name in sorted(shipped_scenarios()) if name in ("synthetic", "tiers")])
def test_shipped_scenarios_fit_the_schema(name: str, validator: Any) -> None:
    document = yaml.safe_load(shipped_scenarios()[name].read_text())
    assert [error.message for error in validator.iter_errors(document)] == []


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(nonsense=1),
        lambda data: data["workloads"][0].update(max_token=1),
        lambda data: data["workloads"][0].update(kind="nobody"),
        lambda data: data["instances"][0]["engine"].update(options={"num_layers": "x"}),
        lambda data: data["instances"][0]["engine"].update(options={"nope": 1}),
        lambda data: data["instances"][0].update(tiers=[{"kind": "tape"}]),
        lambda data: data["instances"][0].update(tiers=[{"kind": "memory", "eviction": "never"}]),
        lambda data: data.update(reporters=["fax"]),
        lambda data: data.pop("name"),
    ],
)
def test_what_the_loader_refuses_the_schema_refuses(change: Any, data: dict[str, Any], validator: Any) -> None:
    assert validator.is_valid(data)
    change(data)
    assert not validator.is_valid(data)


def test_short_forms_are_in_the_schema(data: dict[str, Any], validator: Any) -> None:
    data["instances"][0] |= {"engine": "synthetic", "tiers": ["memory", "disk"], "transport": "zmq"}
    data["launcher"] = "local"
    assert validator.is_valid(data)
