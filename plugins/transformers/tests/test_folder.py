"""A model that is made on the spot, written as a folder, is the same model when it is read again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from lmcache_kit_transformers.engine import make_engine
from lmcache_kit_transformers.folder import main, write_folder
from lmcache_kit_transformers.options import TransformersOptions

from lmcache_kit.contracts import SamplingParams
from lmcache_kit.errors import ConfigError

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
OPTIONS = TransformersOptions(seed=3, config={**SMALL, "intermediate_size": 80})


def answer(engine, tokens: list[int]) -> list[int]:
    sequence = engine.start(tokens, prefix=None, prefill_block=32, sampling=SamplingParams(temperature=0))
    return [sequence.prefill(), *(sequence.decode() for _ in range(6))]


def test_it_answers_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    write_folder("tiny-llama", OPTIONS, folder)
    made, read = make_engine(OPTIONS, "tiny-llama"), make_engine(TransformersOptions(), str(folder))
    text = "Grüße, <s> and   spaces \n\x00 \U0001f600"
    tokens = made.tokenize(text)
    assert read.tokenize(text) == tokens
    assert read.detokenize(tokens[1:]) == made.detokenize(tokens[1:])
    assert read.info.layout == made.info.layout
    assert read.info.eos_token_ids == made.info.eos_token_ids
    assert answer(read, tokens) == answer(made, tokens)
    assert [path.name for path in folder.parent.iterdir()] == ["folder"], "nothing half made is left"


def test_older_versions_know_the_class_of_its_tokenizer(tmp_path: Path) -> None:
    write_folder("tiny-llama", OPTIONS, tmp_path / "m")
    said = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    assert said["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (said["bos_token"], said["eos_token"]) == ("<s>", "</s>")


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is there already"):
        write_folder("tiny-llama", OPTIONS, tmp_path)


def test_a_folder_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_folder("tiny-llama", OPTIONS, tmp_path / "file" / "m")


def test_what_another_process_has_written_meanwhile_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "m"

    def occupied(source: Path, target: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr("lmcache_kit_transformers.folder.os.replace", occupied)
    write_folder("tiny-llama", OPTIONS, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_pretrained_folder_is_one_already(tmp_path: Path) -> None:
    write_folder("tiny-llama", OPTIONS, tmp_path / "m")
    with pytest.raises(ConfigError, match="is a pretrained folder already"):
        write_folder(str(tmp_path / "m"), TransformersOptions(), tmp_path / "n")
    assert not (tmp_path / "n").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ["--option", f"config={json.dumps(OPTIONS.config)}"]
    assert main(["tiny-llama", str(tmp_path / "m"), "--option", "seed=3", *config]) == 0
    assert (tmp_path / "m" / "model.safetensors").is_file()
    for arguments, said in (
        (["tiny-llama", str(tmp_path / "m"), *config], "error: .* is there already\nhint: name a new folder"),
        (["tiny-lama", str(tmp_path / "n")], "error: the transformers engine has no weights for 'tiny-lama'"),
        (["tiny-llama", str(tmp_path / "n"), "--option", "sed=1"], "has no option 'sed'"),
        (["tiny-llama", str(tmp_path / "n"), "--option", "seed"], "--option 'seed' is not KEY=VALUE"),
    ):
        capsys.readouterr()
        assert main(arguments) == 2
        shown = capsys.readouterr().err
        assert re.search(said, shown), shown
    assert not (tmp_path / "n").exists()
