"""docs/reference/faults.md is what the code says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from lmcache_kit.faults.schedule import FaultKind
from lmcache_kit.instance.faults import FAULTS_VARIABLE, TOKEN_VARIABLE, InstanceFaults, LinkFault, decode_faults
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.scenario import fault_plan, model, parse_scenario, validate

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "faults.md").read_text()
HEAD = """
name: x
instance_defaults: {engine: synthetic, tiers: [memory, disk]}
instances: [{id: a}, {id: b}]
workloads: [{name: serve, kind: completions, prompts: [x]}]
"""


def test_the_example_is_valid_and_has_every_kind() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    scenario = parse_scenario(HEAD + example)
    plugins = PluginRegistry(allow=[])
    validate(scenario, plugins)
    assert {fault.kind for fault in fault_plan(scenario, plugins).faults} == {*FaultKind.__args__}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "struct",
    [model.FaultSpec, model.SlowLinkSpec, model.PartitionSpec, model.FullTierSpec, InstanceFaults, LinkFault],
    ids=lambda struct: struct.__name__,
)
def test_every_key_is_described(struct: type[msgspec.Struct]) -> None:
    for field in msgspec.structs.fields(struct):
        assert f"`{field.encode_name}`" in PAGE, field.encode_name


def test_the_body_is_one() -> None:
    (body,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert decode_faults(body).links == {"tcp://127.0.0.1:8201": LinkFault(**json.loads(body)["links"].popitem()[1])}
    assert TOKEN_VARIABLE in PAGE
    assert FAULTS_VARIABLE in PAGE
