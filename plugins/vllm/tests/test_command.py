"""The command line of `vllm serve`, and the model that is made on the spot."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lmcache_kit_vllm import tiny_model as tiny_models
from lmcache_kit_vllm.options import ConnectorOptions
from lmcache_kit_vllm.plugin import VllmOptions, lmcache_kit_engines
from lmcache_kit_vllm.tiny_model import tiny_model

from lmcache_kit.cli import main as cli
from lmcache_kit.contracts import ServerCommand, ServerSpec
from lmcache_kit.errors import ConfigError, LMCacheKitError
from lmcache_kit.plugins import PluginRegistry, registry
from lmcache_kit.scenario import find_scenario, load_scenario, validate


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ServerCommand]:
    """The command for options and the fields of a ServerSpec; the program is there unless another one is named."""
    monkeypatch.delenv("VLLM_NO_USAGE_STATS", raising=False)
    (record,) = lmcache_kit_engines()
    program = executable(tmp_path / "bin" / "vllm")

    def make(options: dict[str, Any] | None = None, **more: Any) -> ServerCommand:
        spec: dict[str, Any] = {
            "model": "org/model",
            "host": "127.0.0.1",
            "port": 8000,
            "config": Path("/c.yaml"),
            "served_models": ("org/model",),
            "max_num_seqs": 16,
        }
        values = {"executable": str(program), **(options or {})}
        assert record.server is not None
        return record.server(PluginRegistry.options(record, values), ServerSpec(**{**spec, **more}))

    return make


def after(argv: tuple[str, ...], flag: str) -> str:
    assert argv.count(flag) == 1, argv
    return argv[argv.index(flag) + 1]


def test_it_is_the_command_that_the_documents_show(command: Any, tmp_path: Path) -> None:
    made = command(port=8123, max_num_seqs=5, args=("--enforce-eager", "--block-size", "32"))
    assert made.argv[:3] == (str(tmp_path / "bin" / "vllm"), "serve", "org/model")
    assert json.loads(after(made.argv, "--kv-transfer-config")) == {
        "kv_connector": "LMCacheKitConnector",
        "kv_role": "kv_both",
        "kv_connector_module_path": "lmcache_kit_vllm",
    }
    assert (after(made.argv, "--host"), after(made.argv, "--port")) == ("127.0.0.1", "8123")
    assert (after(made.argv, "--max-num-seqs"), after(made.argv, "--served-model-name")) == ("5", "org/model")
    assert "--enable-prompt-tokens-details" in made.argv, "or nobody could tell a hit from a miss"
    assert made.argv[-3:] == ("--enforce-eager", "--block-size", "32")
    assert made.env == {"LMCACHE_CONFIG_FILE": "/c.yaml", "VLLM_NO_USAGE_STATS": "1"}


def test_what_is_not_said_is_left_to_vllm(command: Any) -> None:
    made = command(config=None)
    for flag in ("--dtype", "--max-model-len", "--gpu-memory-utilization", "--enable-prefix-caching"):
        assert flag not in made.argv
    assert "--no-enable-prefix-caching" not in made.argv
    assert "LMCACHE_CONFIG_FILE" not in made.env, "then the environment's own settings hold"


def test_options_become_flags(command: Any) -> None:
    options = {"dtype": "float32", "max_model_len": 4096, "gpu_memory_utilization": 0.5, "prefix_caching": False}
    argv = command(options).argv
    assert after(argv, "--dtype") == "float32"
    assert after(argv, "--max-model-len") == "4096"
    assert after(argv, "--gpu-memory-utilization") == "0.5"
    assert "--no-enable-prefix-caching" in argv
    assert "--enable-prefix-caching" in command({"prefix_caching": True}).argv


def test_options_of_the_connector_go_to_it_as_it_names_them(command: Any) -> None:
    argv = command({"connector": {"staging": "64MiB", "layerwise": False, "patience": 0.005}}).argv
    extra = json.loads(after(argv, "--kv-transfer-config"))["kv_connector_extra_config"]
    assert extra == {"staging": "64MiB", "layerwise": False}, "what is as usual need not be said"


def test_vllm_has_time_to_end_in_order(command: Any) -> None:
    assert after(command().argv, "--shutdown-timeout") == "10"
    assert "--shutdown-timeout" not in command(args=("--shutdown_timeout=3",)).argv
    assert command(args=("--shutdown_timeout=3",)).argv[-1] == "--shutdown_timeout=3"


def test_the_user_decides_whether_vllm_reports_its_usage(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "0")
    assert "VLLM_NO_USAGE_STATS" not in command().env


@pytest.mark.parametrize(
    ("options", "more", "said"),
    [
        ({"executable": "/nowhere/vllm"}, {}, "no command '/nowhere/vllm'"),
        ({"dtype": "float64"}, {}, "dtype"),
        ({"connector": {"stagin": 1}}, {}, "stagin"),
        ({"gpu_memory_utilization": 0}, {}, "gpu_memory_utilization"),
        ({}, {"args": ("--port", "1")}, "the argument --port is the instance's port"),
        ({}, {"args": ("-x", "--kv-transfer-config={}")}, "--kv-transfer-config is the engine's option connector"),
        ({}, {"args": ("--max_num_seqs=3",)}, "--max-num-seqs is the instance's max_num_seqs"),
        ({}, {"args": ("--served_model_name", "x")}, "--served-model-name is the engine's model"),
        ({"dtype": "float32"}, {"args": ("--dtype", "auto")}, "the argument --dtype and the option dtype are both"),
        ({"prefix_caching": True}, {"args": ("--no-enable-prefix-caching",)}, "and the option prefix_caching"),
    ],
)
def test_mistakes(command: Any, options: dict[str, Any], more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        command(options, **more)
    assert said in caught.value.message


def test_an_argument_may_say_what_no_option_says(command: Any) -> None:
    assert after(command(args=("--dtype", "bfloat16")).argv, "--dtype") == "bfloat16"


# --- where vllm is ---------------------------------------------------------------------------------------------------


def test_vllm_is_looked_for_beside_this_python_then_on_path(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    with pytest.raises(ConfigError, match=f"no command vllm in {python.parent}, nor on PATH") as caught:
        command({"executable": None})
    assert "pip install vllm" in str(caught.value.hint)
    on_path = executable(tmp_path / "path" / "vllm")
    assert command({"executable": None}).argv[0] == str(on_path)
    assert command({"executable": "vllm"}).argv[0] == str(on_path)
    beside = executable(python.parent / "vllm")
    assert command({"executable": None}).argv[0] == str(beside)
    beside.chmod(0o644)
    assert command({"executable": None}).argv[0] == str(on_path), "what cannot be run is not there"


def test_a_home_folder_may_be_written_short(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command({"executable": "~/bin/vllm"}).argv[0] == str(tmp_path / "bin" / "vllm")


# --- the model that is made on the spot ------------------------------------------------------------------------------


def test_the_tiny_model_is_made_once_and_served_under_its_name(command: Any, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    cache = tmp_path / "cache"
    more = {"model": "tiny-llama", "served_models": ("tiny-llama",)}
    first = command({"cache_dir": str(cache)}, **more)
    folder = Path(first.argv[2])
    assert folder.parent == cache
    assert after(first.argv, "--served-model-name") == "tiny-llama"
    config = AutoConfig.from_pretrained(folder)
    assert config.hidden_size // config.num_attention_heads == 32, "the smallest heads of vLLM's CPU attention"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer.encode("hé")
    assert (tokens[0], len(tokens)) == (0, 4), "a byte is a token, behind the one that begins a text"
    assert tokenizer.decode(tokens, skip_special_tokens=True) == "hé"
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in written}
    assert command({"cache_dir": str(cache)}, **more) == first
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    assert [path.name for path in cache.iterdir()] == [folder.name], "nothing half made is left"


def test_the_tiny_model_needs_what_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="made by lmcache-kit-transformers") as caught:
        tiny_model("tiny-llama", str(tmp_path))
    assert "pip install lmcache-kit-transformers" in str(caught.value.hint)


@pytest.mark.parametrize("made_meanwhile", [False, True])
def test_a_tiny_model_that_cannot_be_made(
    made_meanwhile: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        if made_meanwhile:
            folder = Path(command[4])
            folder.mkdir()
            (folder / "config.json").write_text("{}")
        return subprocess.CompletedProcess(command, 2, "", "error: there is no room\nhint: make some\n")

    monkeypatch.setattr(tiny_models.subprocess, "run", run)
    if made_meanwhile:
        assert Path(tiny_model("tiny-llama", str(tmp_path))).is_dir()
    else:
        with pytest.raises(LMCacheKitError, match=r"could not be made in .*: error: there is no room$"):
            tiny_model("tiny-llama", str(tmp_path))


def test_the_cache_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "lmcache-kit" / "models" / "tiny-llama-1"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert tiny_model("tiny-llama", None) == str(folder)


def test_a_look_at_the_plugin_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom lmcache_kit.cli import main\nmain(['plugins', 'show', 'vllm'])\n"
        "heavy = {'torch', 'vllm', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "gpu_memory_utilization" in done.stdout


def test_options_have_the_defaults_of_vllm() -> None:
    given = VllmOptions()
    assert (given.executable, given.dtype, given.max_model_len, given.prefix_caching) == (None,) * 4


def test_the_readme_names_every_option() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    for name in (*VllmOptions.__struct_fields__, *ConnectorOptions.__struct_fields__):
        assert f"| `{name}` |" in text, name


def test_the_shipped_scenario_is_valid() -> None:
    scenario = load_scenario(find_scenario("vllm"))
    validate(scenario, registry())
    assert "vllm" in [each.engine.kind for each in scenario.instances if each.engine is not None]


def test_serve_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LMCACHE_CONFIG_FILE", raising=False)
    assert cli(["serve", "--engine", "vllm", "--port", "0"]) == 2
    shown = capsys.readouterr().err
    assert f"error: engine 'vllm': vLLM is not installed: there is no command vllm in {tmp_path}, nor on PATH" in shown
    assert "hint: pip install vllm" in shown
