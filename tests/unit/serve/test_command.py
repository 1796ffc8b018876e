"""``lmcache-kit serve``: mistakes on the command line end with status 2 and name the flag."""

from __future__ import annotations

import gc

import pytest

from lmcache_kit.builtin.engines.synthetic import SyntheticEngine
from lmcache_kit.cli import main
from lmcache_kit.cli.serve import make_engine
from lmcache_kit.contracts import EnginePlugin, NoOptions
from lmcache_kit.errors import ConfigError
from lmcache_kit.plugins import PluginRegistry


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "no model is named"),
        (["m", "--model", "n"], "two models"),
        (["m", "--engine", "synthetik"], "did you mean 'synthetic'"),
        (["m", "--engine-option", "layers=2"], "no option 'layers'"),
        (["m", "--engine-option", "num_layers"], "KEY=VALUE"),
        (["m", "--engine-option", "num_layers=[1"], "num_layers"),
        (["m", "--engine-option", "num_layers=many"], "num_layers"),
        (["m", "--max-model-len", "100", "--engine-option", "max_model_len=200"], "give one"),
        (["m", "--host", "192.0.2.1"], "--host"),
        (["m", "--max-num-seqs", "0"], "--max-num-seqs"),
    ],
)
def test_mistakes(arguments: list[str], what: str, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.delenv("LMCACHE_CONFIG_FILE", raising=False)
    assert main(["serve", "--port", "0", *arguments]) == 2
    # typer draws a box around usage errors and wraps them.
    assert what in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_configuration_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "m", "--port", "0", "--config", "/nowhere/example.yaml"]) == 2
    assert "/nowhere/example.yaml" in capsys.readouterr().err


def test_max_model_len_becomes_an_option_of_the_engine() -> None:
    made = make_engine("synthetic", "m", {}, max_model_len=77)
    assert isinstance(made, SyntheticEngine)
    assert made.info.max_model_len == 77
    assert make_engine("synthetic", "m", {"max_model_len": 77}, max_model_len=77).info.max_model_len == 77


def test_an_engine_without_max_model_len(monkeypatch: pytest.MonkeyPatch) -> None:
    record = EnginePlugin(name="synthetic", summary="none", options=NoOptions, factory=lambda options, model: None)
    monkeypatch.setattr(PluginRegistry, "get", lambda self, kind, name: record)
    with pytest.raises(ConfigError, match="--max-model-len"):
        make_engine("synthetic", "m", {}, max_model_len=77)


def test_an_engine_may_have_a_default_model(monkeypatch: pytest.MonkeyPatch) -> None:
    record = EnginePlugin(
        name="x", summary="none", options=NoOptions, factory=lambda options, model: model, default_model="small"
    )
    monkeypatch.setattr(PluginRegistry, "get", lambda self, kind, name: record)
    assert make_engine("x", None, {}, max_model_len=None) == "small"
    assert make_engine("x", "large", {}, max_model_len=None) == "large"


def test_the_garbage_collector_works_again_when_an_engine_cannot_be_made(capsys: pytest.CaptureFixture[str]) -> None:
    frozen = gc.get_freeze_count()
    assert main(["serve", "m", "--port", "0", "--engine-option", "num_layers=many"]) == 2
    assert gc.isenabled()
    assert gc.get_freeze_count() == frozen


@pytest.mark.parametrize("engine", [None, "synthetic"])
def test_made_up_text_is_announced_unless_it_was_asked_for(
    engine: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = ["serve", "meta-llama/Llama-3.1-8B-Instruct", "--port", "0", "--engine-option", "num_layers=many"]
    assert main([*arguments, *(["--engine", engine] if engine else [])]) == 2
    assert ("--engine transformers computes real ones" in caplog.text) is (engine is None)
