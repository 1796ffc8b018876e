"""Faults of a scenario's file: what is understood, and what is refused before anything boots."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import yaml

from lmcache_kit.cli import main
from lmcache_kit.contracts.records import LauncherPlugin
from lmcache_kit.errors import ConfigError
from lmcache_kit.faults import FaultPlan
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.scenario import dump_scenario, fault_plan, parse_scenario, scenario_schema, validate

HEAD = """
name: x
instance_defaults:
  engine: synthetic
  tiers: [{kind: memory, capacity: 1MiB}, {kind: disk, capacity: 1MiB}]
instances: [{id: alpha}, {id: beta}, {id: cell, count: 2}]
workloads:
  - {name: serve, kind: completions, prompts: [x]}
  - {name: again, kind: completions, prompts: [x]}
faults:
"""


def text(*faults: str) -> str:
    return HEAD + "".join(f"  - {fault}\n" for fault in faults)


@pytest.fixture(scope="module")
def plugins() -> PluginRegistry:
    return PluginRegistry(allow=[])


def plan_of(plugins: PluginRegistry, *faults: str) -> FaultPlan:
    scenario = parse_scenario(text(*faults))
    assert parse_scenario(dump_scenario(scenario)) == scenario
    validate(scenario, plugins)
    return fault_plan(scenario, plugins)


def test_each_kind_becomes_a_record_in_plain_units(plugins: PluginRegistry) -> None:
    plan = plan_of(
        plugins,
        "{at: 2s, kill: alpha}",
        "{at: 5, restart: alpha}",
        "{at: 1min, kill: controller, after: again}",
        "{at: 10ms, slow_link: {between: [beta, alpha], bandwidth: 10Mbps, latency: 50ms}, for: 1s}",
        "{at: 0, partition: {between: [controller, beta]}, for: 500ms, after: serve}",
        "{at: 1s, full_tier: {instance: cell-1, location: LocalDiskBackend}}",
    )
    kill, restart, controller, slow, partition, full = plan.faults
    assert (kill.kind, kill.target, kill.at, kill.until) == ("kill", ("alpha",), 2.0, None)
    assert (restart.kind, restart.at) == ("restart", 5.0)
    assert (controller.target, controller.at) == (("controller",), 60.0)
    assert (slow.target, slow.at, slow.until) == (("alpha", "beta"), 0.01, 1.01)
    assert (slow.bandwidth, slow.latency) == (10e6 / 8, 0.05)
    assert (partition.target, partition.after, partition.until) == (("beta", "controller"), "serve", 0.5)
    assert (full.target, full.location, full.until) == (("cell-1",), "LocalDiskBackend", None)
    assert [(action.at, action.step, action.fault.kind) for action in plan.actions()] == [
        (0.01, "begin", "slow_link"),
        (1.0, "begin", "full_tier"),
        (1.01, "end", "slow_link"),
        (2.0, "begin", "kill"),
        (5.0, "begin", "restart"),
    ]


def test_what_may_happen_to_one_target(plugins: PluginRegistry) -> None:
    plan_of(plugins, "{at: 1, kill: alpha}", "{at: 2, restart: alpha}", "{at: 3, kill: alpha}")
    link = "{between: [alpha, beta], latency: 1s}"
    # One ends when the next begins; another link is another link; a link may be slow and cut.
    plan_of(plugins, f"{{at: 2, slow_link: {link}, for: 9}}", f"{{at: 1, slow_link: {link}, for: 1}}")
    plan_of(plugins, f"{{at: 1, slow_link: {link}}}", "{at: 1, slow_link: {between: [alpha, cell-0], latency: 1s}}")
    plan_of(plugins, f"{{at: 1, slow_link: {link}}}", "{at: 2, partition: {between: [alpha, beta]}, for: 1s}")
    # A later workload comes later, whatever the seconds say.
    plan_of(plugins, "{at: 9, kill: alpha, after: serve}", "{at: 1, restart: alpha, after: again}")


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (["{at: 1, kill: alpa}"], ["faults.0.kill", "'alpa'", "did you mean 'alpha'", "controller"]),
        (["{at: 1, kill: cell}"], ["faults.0.kill", "cell-0"]),
        (["{at: 1, kill: alpha}", "{at: 2, restart: gamma}"], ["faults.1.restart", "'gamma'"]),
        (["{at: 1}"], ["faults.0 names no fault", "kill"]),
        (["{at: 1, kill: alpha, restart: beta}"], ["kill and restart", "exactly one"]),
        (["{kill: alpha}"], ["faults.0", "at"]),
        (["{at: soon, kill: alpha}"], ["faults.0.at", "'soon'"]),
        (["{at: -1, kill: alpha}"], ["faults.0.at"]),
        (["{at: 1, kill: alpha, for: 2s}"], ["faults.0.for", "a restart ends what a kill began"]),
        (["{at: 1, kill: alpha, after: serv}"], ["faults.0.after", "did you mean 'serve'"]),
        (["{at: 1, kil: alpha}"], ["faults.0.kil", "kill"]),
        (["{at: 1, partition: {between: [alpha, beta]}, for: 0s}"], ["faults.0.for", "above 0"]),
        (["{at: 1, partition: {between: [alpha, alpha]}}"], ["faults.0.partition.between", "twice"]),
        (["{at: 1, partition: {between: [alpha]}}"], ["faults.0.partition.between"]),
        (["{at: 1, partition: {between: [alpha, bta]}}"], ["faults.0.partition.between", "did you mean 'beta'"]),
        (["{at: 1, slow_link: {between: [alpha, beta]}}"], ["faults.0.slow_link", "bandwidth, latency or both"]),
        (["{at: 1, slow_link: {between: [alpha, controller], latency: 1s}}"], ["faults.0.slow_link", "partition"]),
        (["{at: 1, slow_link: {between: [alpha, beta], bandwidth: 0Mbps}}"], ["faults.0.slow_link.bandwidth"]),
        (["{at: 1, slow_link: {between: [alpha, beta], latency: x}}"], ["faults.0.slow_link.latency"]),
        (["{at: 1, slow_link: {between: [alpha, beta], speed: 1}}"], ["faults.0.slow_link.speed"]),
        (["{at: 1, full_tier: {instance: alpha, location: LocalDisk}}"], ["faults.0.full_tier.location", "Backend"]),
        (["{at: 1, full_tier: {instance: controller, location: LocalDiskBackend}}"], ["faults.0.full_tier.instance"]),
        (["{at: 2, restart: alpha}"], ["faults.0: alpha is not down at 2 s", "kill it first"]),
        (["{at: 2, restart: alpha}", "{at: 3, kill: alpha}"], ["faults.0: alpha is not down at 2 s"]),
        (["{at: 2, kill: alpha}", "{at: 1, kill: alpha}"], ["faults.0: alpha is down already at 2 s"]),
        (
            ["{at: 0, kill: alpha, after: again}", "{at: 9, restart: alpha, after: serve}"],
            ["faults.1: alpha is not down at 9 s after serve"],
        ),
        (
            ["{at: 1, kill: alpha}", "{at: 2, full_tier: {instance: alpha, location: LocalDiskBackend}}"],
            ["faults.1: alpha is down at 2 s"],
        ),
        (
            ["{at: 1, kill: controller}", "{at: 2, partition: {between: [alpha, controller]}}"],
            ["faults.1: controller is down at 2 s"],
        ),
        (
            ["{at: 1, partition: {between: [alpha, beta]}, for: 2s}", "{at: 2, partition: {between: [beta, alpha]}}"],
            ["faults.1: another partition of alpha-beta still lasts at 2 s"],
        ),
    ],
)
def test_what_cannot_be_is_refused_by_path(plugins: PluginRegistry, faults: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        validate(parse_scenario(text(*faults)), plugins)
    for word in words:
        assert word in raised.value.detail


def test_an_instance_called_controller_is_refused_where_it_could_be_mistaken(plugins: PluginRegistry) -> None:
    named = text("{at: 1, kill: controller}").replace("id: alpha}", "id: controller}")
    with pytest.raises(ConfigError, match="'controller' could be the instance"):
        validate(parse_scenario(named), plugins)
    validate(parse_scenario(named.partition("\nfaults:")[0]), plugins)


def test_a_launcher_that_cannot_kill_is_named(plugins: PluginRegistry) -> None:
    class Faraway:
        def all(self, kind: str) -> Any:
            return plugins.all(kind)

        def __getattr__(self, name: str) -> Any:
            return getattr(plugins, name)

        def get(self, kind: Any, name: str) -> Any:
            record = plugins.get(kind, "local" if name == "far" else name)
            if name != "far":
                return record
            return LauncherPlugin(name="far", summary="elsewhere", factory=record.factory)

    registry: Any = Faraway()
    for fault in ("{at: 1, kill: alpha}", "{at: 1, kill: alpha}\n  - {at: 2, restart: alpha}"):
        scenario = parse_scenario(text(fault) + "launcher: far\n")
        with pytest.raises(ConfigError, match=r"faults\.0: launcher 'far' cannot kill a process"):
            fault_plan(scenario, registry)
        # Nothing is launched in virtual time.
        fault_plan(parse_scenario(text(fault) + "launcher: far\nclock: virtual\n"), registry)
    fault_plan(parse_scenario(text("{at: 1, partition: {between: [alpha, beta]}}") + "launcher: far\n"), registry)


def test_the_schema_knows_faults_as_the_loader_does(plugins: PluginRegistry) -> None:
    schema = scenario_schema(plugins)
    checker = jsonschema.Draft202012Validator(schema)
    good = yaml.safe_load(text("{at: 1s, slow_link: {between: [alpha, beta], latency: 1s}, for: 2s, after: serve}"))
    assert list(checker.iter_errors(good)) == []
    for wrong in (
        "{kill: alpha}",
        "{at: 1, kil: alpha}",
        "{at: 1, full_tier: {instance: alpha}}",
        "{at: 1, kill: [alpha]}",
        "{at: 1}",
        "{at: 1, kill: alpha, restart: beta}",
    ):
        assert list(checker.iter_errors(yaml.safe_load(text(wrong)))), wrong


def test_the_command_refuses_before_anything_boots(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text("{at: 1, restart: alpha}"))
    assert main(["scenario", "validate", str(path)]) == 2
    assert "faults.0: alpha is not down" in capsys.readouterr().err
    assert main(["run", str(path), "--output-dir", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    assert main(["scenario", "schema"]) == 0
    assert "FaultSpec" in json.loads(capsys.readouterr().out)["$defs"]
