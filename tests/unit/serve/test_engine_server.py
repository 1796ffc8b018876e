"""Engines that are servers of their own: what `serve` becomes and refuses, and how records and scenarios say it."""

from __future__ import annotations

import json
import logging
import os
import socket
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lmcache_kit.builtin.engines import RECORDS
from lmcache_kit.cli import engine_server, main
from lmcache_kit.cli.serve import make_engine
from lmcache_kit.contracts import EnginePlugin, Options, ServerCommand, ServerSpec
from lmcache_kit.errors import ConfigError, PluginError, UnavailableError
from lmcache_kit.live import OutputFolder
from lmcache_kit.live.fleet_plan import plan_fleet
from lmcache_kit.plugin_checks import check_record
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.scenario import fault_plan, load_scenario, parse_scenario, scenario_schema, validate
from lmcache_kit.scenario.validate import startup_timeout
from lmcache_kit.testing.checking import check_plugin


class OwnOptions(Options, frozen=True):
    max_model_len: int | None = None
    gpu_memory_utilization: float | None = None
    broken: str = ""


def own_server(options: Options, spec: ServerSpec) -> ServerCommand:
    assert isinstance(options, OwnOptions)
    if options.broken == "refused":
        raise ConfigError("it is not installed", hint="install it")
    if options.broken == "nonsense":
        return None  # type: ignore[return-value]
    argv = ["own", spec.model, spec.host, str(spec.port), str(spec.config), *spec.served_models]
    argv += [str(spec.max_num_seqs), str(options.max_model_len), str(options.gpu_memory_utilization), *spec.args]
    return ServerCommand(argv=tuple(argv), env={"OWN": "1"})


OWN = EnginePlugin(name="own", summary="a server", options=OwnOptions, server=own_server, default_model="small")


class Become(Exception):
    """In place of exec, after which nothing runs."""


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """The engine `own` is installed; what would be executed, and its environment, are kept."""
    found: list[tuple[list[str], dict[str, str]]] = []
    known = PluginRegistry.get

    def get(self: PluginRegistry, kind: Any, name: str) -> Any:
        return OWN if (kind, name) == (EnginePlugin, "own") else known(self, kind, name)

    def execute(file: str, argv: list[str], env: dict[str, str]) -> None:
        assert file == argv[0]
        found.append((argv, env))
        raise Become

    monkeypatch.setattr(PluginRegistry, "get", get)
    monkeypatch.setattr(engine_server.become, "__kwdefaults__", {"execute": execute})
    monkeypatch.delenv("LMCACHE_CONFIG_FILE", raising=False)
    return found


def serve(*arguments: str) -> int:
    return main(["serve", "--engine", "own", *arguments])


# --- serve -----------------------------------------------------------------------------------------------------------


def test_serve_becomes_the_server(executed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.yaml").write_text("chunk_size: 16\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FROM_OUTSIDE", "2")
    flags = ["--config", "c.yaml", "--host", "127.0.0.1", "--port", "0", "--max-num-seqs", "3", "--max-model-len", "99"]
    serve("--model", "m", *flags, "--gpu-memory-utilization", "0.5", "--", "--flag", "--port", "1", "--", "x y")
    ((argv, env),) = executed
    expected = ["own", "m", "127.0.0.1", "0", str(tmp_path / "c.yaml"), "m", "3", "99", "0.5"]
    assert argv == [*expected, "--flag", "--port", "1", "--", "x y"]
    assert (env["OWN"], env["FROM_OUTSIDE"]) == ("1", "2")


def test_defaults_and_several_names(executed: Any) -> None:
    serve("--port", "0", "--served-model-name", "a", "--served-model-name", "b")
    serve("--port", "0", "m")
    assert [argv for argv, _ in executed] == [
        ["own", "small", "127.0.0.1", "0", "None", "a", "b", "16", "None", "None"],
        ["own", "m", "127.0.0.1", "0", "None", "m", "16", "None", "None"],
    ]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--engine-option", "broken=refused"], 2, ["error: engine 'own': it is not installed", "hint: install it"]),
        (["--engine-option", "broken=nonsense"], 2, ["its server gave None, not a ServerCommand"]),
        (["--engine-option", "brokn=x"], 2, ["no option 'brokn'", "did you mean 'broken'"]),
        (["--config", "/nowhere.yaml"], 2, ["/nowhere.yaml"]),
        (
            ["--gpu-memory-utilization", "0.5", "--engine-option", "gpu_memory_utilization=0.6"],
            2,
            ["--gpu-memory-utilization and --engine-option gpu_memory_utilization differ"],
        ),
        (["--engine", "synthetic", "m", "--", "--flag"], 2, ["'synthetic' takes no arguments", "got '--flag'"]),
    ],
)
def test_what_is_refused_before(
    executed: Any, arguments: list[str], status: int, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve("--port", "0", *arguments) == status
    assert executed == []
    shown = capsys.readouterr().err
    for text in said:
        assert text in shown
    assert "Traceback" not in shown


def test_a_port_in_use_is_told_before_a_server_loads_for_a_minute(
    executed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert serve("--port", str(taken.getsockname()[1])) == 2
    assert executed == []
    assert "in use" in capsys.readouterr().err


def test_the_port_is_free_again_for_the_server(executed: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve("--port", str(port))
    assert len(executed) == 1
    with socket.socket() as server:
        server.bind(("127.0.0.1", port))


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (None, "is not there, or the interpreter that it names"),
        ("", "cannot be run: Permission denied"),
        ("#!/nowhere/python\n", "is not there, or the interpreter that it names"),
        ("\0\0", "cannot be run: "),
    ],
)
def test_a_program_that_cannot_be_run(program: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "own"
    if program is not None:
        path.write_text(program)
        path.chmod(0o755 if program else 0o644)
    record = EnginePlugin(name="own", summary="x", server=lambda options, spec: ServerCommand(argv=(str(path), "x")))
    spec = ServerSpec(model="m", host="h", port=1, config=None, served_models=("m",), max_num_seqs=1)
    with pytest.raises(UnavailableError, match=said) as caught:
        engine_server.become(record, Options(), spec, execute=os.execvpe)
    assert "engine 'own'" in caught.value.message


def test_the_command_line_is_logged_as_a_shell_takes_it(executed: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=engine_server.__name__):
        serve("--port", "0", "--model", "m", "--", '{"a": 1}')
    assert """engine own: own m 127.0.0.1 0 None m 16 None None '{"a": 1}'""" in caplog.text


def test_the_usage_shows_where_arguments_go(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--help"]) == 0
    assert "[-- ARGS]" in capsys.readouterr().out


# --- records ---------------------------------------------------------------------------------------------------------


def test_an_engine_that_is_a_server_cannot_be_made_here(executed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="is a server of its own"):
        make_engine("own", "m", {}, max_model_len=None)
    text = Path(__file__)
    assert main(["codec", "sample", "--text", str(text), "--output", "/nowhere/kv", "--engine", "own"]) == 2
    assert "error: engine 'own' is a server of its own" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "the factory of engine 'x' is None"),
        ({"factory": lambda options, model: None, "server": own_server}, "both a factory and a server"),
        ({"server": lambda options: None}, "takes no argument for 'spec'"),
        ({"server": lambda options, spec, more: None}, "wants one more argument 'more'"),
        ({"server": "vllm"}, "the server of engine 'x' is 'vllm'"),
    ],
)
def test_records_that_are_wrong(more: dict[str, Any], said: str) -> None:
    with pytest.raises(PluginError, match=said):
        check_record(EnginePlugin(name="x", summary="x", **more), "lmcache_kit_engines", "engine", thorough=True)


def test_records_that_are_right() -> None:
    for record in (OWN, *RECORDS):
        check_record(record, "lmcache_kit_engines", "engine", thorough=True)


def test_its_check_runs_the_command_and_says_why_the_rest_is_left_out() -> None:
    report = check_plugin(OWN, quick=True)
    found = {result.check: result for result in report.results}
    assert not report.failed
    (why,) = {result.detail for result in report.results if result.detail.startswith("it cannot be used here")}
    assert "a server of its own" in why
    assert found["test_a_server_is_told_where_to_listen_and_what_to_serve"].outcome == "passed"


@pytest.mark.parametrize(
    ("broken", "failing"),
    [
        (
            lambda options, spec: ServerCommand(argv=("own", spec.model, spec.host, *spec.args)),
            "test_a_server_is_told_where_to_listen_and_what_to_serve",
        ),
        (
            lambda options, spec: ServerCommand(argv=("own", spec.model, spec.host, str(spec.port), str(spec.config))),
            "test_arguments_go_to_the_server_as_they_are",
        ),
        (
            lambda options, spec: ServerCommand(argv=("own", 8000)),  # type: ignore[arg-type]
            "test_a_command_is_text_and_says_it_every_time",
        ),
        (lambda options, spec: ["own"], "test_a_command_is_text_and_says_it_every_time"),
    ],
)
def test_a_server_that_forgets_something_fails_its_check(broken: Any, failing: str) -> None:
    report = check_plugin(EnginePlugin(name="x", summary="x", server=broken), quick=True)
    assert failing in {result.check for result in report.results if result.outcome == "failed"}


COMMAND = "test_a_command_is_text_and_says_it_every_time"


def test_a_server_that_is_not_installed_is_skipped() -> None:
    report = check_plugin(OWN, options={"broken": "refused"}, quick=True)
    assert not report.failed
    found = {result.check: result for result in report.results}
    assert (found[COMMAND].outcome, found[COMMAND].detail) == (
        "skipped",
        "it cannot be used here: it is not installed (install it)",
    )


def test_plugins_show_it(executed: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from lmcache_kit.plugins import RegisteredPlugin

    monkeypatch.setattr(PluginRegistry, "find", lambda self, name: [RegisteredPlugin(OWN, "own", "own")])
    assert main(["plugins", "show", "own", "--format", "json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)
    assert (facts["server"], facts["default_model"]) == (True, "small")
    assert main(["plugins", "show", "own"]) == 0
    assert "function" not in capsys.readouterr().out


# --- scenarios -------------------------------------------------------------------------------------------------------

SCENARIO = """
name: own
instances:
  - {id: v, engine: {kind: own, args: [--max-model-len, 4096, --share, 0.5]}, chunk_size: 32}
  - {id: a, engine: synthetic}
workloads:
  - {name: serve, kind: completions, prompts: [x]}
"""


@pytest.fixture
def plugins(executed: Any) -> PluginRegistry:
    return PluginRegistry(allow=[])


def test_args_reach_the_command_line_behind_the_rest(plugins: PluginRegistry, tmp_path: Path) -> None:
    scenario = parse_scenario(SCENARIO)
    validate(scenario, plugins)
    folder = OutputFolder(tmp_path / "out")
    folder.prepare()
    own, ours = plan_fleet(scenario, plugins, folder).instances
    assert list(own.spec.argv)[-5:] == ["--", "--max-model-len", "4096", "--share", "0.5"]
    assert list(own.spec.argv)[own.spec.argv.index("--model") + 1] == "small"
    assert "--" not in ours.spec.argv
    assert [(planned.server, planned.chunk_size) for planned in (own, ours)] == [(True, 32), (False, 256)]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["instances.a.engine.args=[--flag]"], "instances.a.engine.args: engine 'synthetic' takes no arguments"),
        (["instances.v.engine.args=[true]"], "instances.0.engine.args"),
        (["instances.v.engine.args=--flag"], "instances.0.engine.args"),
        (["clock=virtual"], "instances.v.engine: 'own' is a server of its own, which runs on the wall clock only"),
        (
            ["faults=[{at: 1, full_tier: {instance: v, location: LocalCPUBackend}}]"],
            "faults.0.full_tier: the engine of",
        ),
        (
            ["faults=[{at: 1, slow_link: {between: [a, v], latency: 1}}]"],
            "faults.0.slow_link: the engine of instance",
        ),
        (["faults=[{at: 1, partition: {between: [v, controller]}}]"], "faults.0.partition: the engine of instance 'v'"),
    ],
)
def test_what_a_scenario_cannot_ask_of_it(plugins: PluginRegistry, overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(parse_scenario(SCENARIO, overrides), plugins)
    assert said in caught.value.message


def test_it_may_be_killed_and_others_may_have_faults(plugins: PluginRegistry) -> None:
    faults = "faults=[{at: 1, kill: v}, {at: 2, restart: v}, {at: 3, partition: {between: [a, controller]}}]"
    assert len(fault_plan(parse_scenario(SCENARIO, [faults]), plugins).faults) == 3


def test_servers_have_longer_to_start_unless_the_scenario_says_otherwise(plugins: PluginRegistry) -> None:
    scenario = parse_scenario(SCENARIO)
    assert startup_timeout(scenario, plugins) == 600
    assert startup_timeout(parse_scenario(SCENARIO, ["startup_timeout=7"]), plugins) == 7
    assert startup_timeout(parse_scenario(SCENARIO, ["instances.v.engine={kind: synthetic}"]), plugins) == 120


def test_the_schema_takes_args_for_servers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = PluginRegistry(allow=[])
    from lmcache_kit.plugins import RegisteredPlugin

    plugins._plugins["engine"]["own"] = RegisteredPlugin(OWN, "own", "own")
    import yaml

    check = jsonschema.Draft202012Validator(scenario_schema(plugins))
    data = yaml.safe_load(SCENARIO)
    assert list(check.iter_errors(data)) == []
    data["instances"][1]["engine"] = {"kind": "synthetic", "args": ["--flag"]}
    assert list(check.iter_errors(data))
    data["instances"][1]["engine"]["args"] = []
    assert list(check.iter_errors(data)) == []


# --- the shipped scenario --------------------------------------------------------------------------------------------


def test_the_shipped_scenario_says_what_is_missing(plugins: PluginRegistry) -> None:
    from lmcache_kit.scenario import find_scenario

    with pytest.raises(ConfigError) as caught:
        validate(load_scenario(find_scenario("vllm")), plugins)
    assert caught.value.message == "instances.vllm.engine: unknown engine plugin 'vllm'"
    assert "pip install lmcache-kit-vllm" in str(caught.value.hint)
