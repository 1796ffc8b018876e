"""What is read from files: configurations, texts, cached tokenizers, pretrained folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from lmcache_kit_transformers.engine import make_engine
from lmcache_kit_transformers.model import kv_layout
from lmcache_kit_transformers.options import TransformersOptions
from lmcache_kit_transformers.tokenizer import train_tokenizer
from transformers import PreTrainedTokenizerFast

from lmcache_kit.contracts import EnginePlugin, SamplingParams
from lmcache_kit.errors import ConfigError
from lmcache_kit.plugins import registry

TRICKY = "Ünïcödé – 漢字 🙂\n\ttabs and  spaces <b>"


def test_it_is_found_as_a_plugin_and_its_options_are_checked() -> None:
    record = registry().get(EnginePlugin, "transformers")
    assert record.options is TransformersOptions
    for wrong in ({"device": "tpu"}, {"threads": 0}, {"dtype": "int8"}, {"sead": 1}):
        with pytest.raises(ConfigError):
            registry().options(record, wrong)


def test_the_network_is_off() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_listing_the_plugin_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, lmcache_kit_transformers as p; assert len(list(p.lmcache_kit_engines())) == 1;"
        "print([name for name in ('torch', 'transformers', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_a_config_file_is_the_same_as_its_values(engine, tmp_path: Path) -> None:
    file = tmp_path / "tiny.json"
    config = {name: getattr(engine.model.config, name) for name in ("hidden_size", "intermediate_size")}
    file.write_text(json.dumps({**config, "num_hidden_layers": 1, "num_attention_heads": 4}))
    values = json.loads(file.read_text())
    from_file = make_engine(TransformersOptions(config=str(file)), "m")
    assert from_file.info.fingerprint == make_engine(TransformersOptions(config=values), "m").info.fingerprint
    with pytest.raises(ConfigError, match="cannot read the model config"):
        make_engine(TransformersOptions(config=str(tmp_path / "missing.json")), "m")
    file.write_text("[1]")
    with pytest.raises(ConfigError, match="not a JSON object"):
        make_engine(TransformersOptions(config=str(file)), "m")


def test_a_model_without_weights_says_what_to_do() -> None:
    with pytest.raises(ConfigError) as caught:
        make_engine(TransformersOptions(), "meta-llama/Llama-3.1-8B-Instruct")
    assert "option config" in caught.value.detail


def test_tokenizers_are_trained_the_same_every_time(text_file: Path, tmp_path: Path) -> None:
    made = [train_tokenizer(str(text_file), 350, str(tmp_path / name)) for name in "ab"]
    assert made[0].identity == made[1].identity
    assert made[0].size == 350
    tokens = made[0].encode(TRICKY, add_special_tokens=True)
    assert tokens[0] == 0
    assert made[0].decode(tokens, skip_special_tokens=True) == TRICKY
    assert made[0].decode(tokens, skip_special_tokens=False) == "<s>" + TRICKY
    assert made[0].encode(TRICKY, add_special_tokens=False) == tokens[1:]
    assert len(made[0].encode(text_file.read_text(), add_special_tokens=False)) < len(text_file.read_bytes()) / 2
    assert made[0].piece(0) == "<s>"


def test_a_trained_tokenizer_is_kept_and_a_damaged_one_is_trained_again(text_file: Path, tmp_path: Path) -> None:
    first = train_tokenizer(str(text_file), 350, str(tmp_path))
    (stored,) = tmp_path.iterdir()
    stored.write_text(stored.read_text().replace('"</s>"', '"</S>"'))  # to see that it is read
    assert train_tokenizer(str(text_file), 350, str(tmp_path)).piece(1) == "</S>"
    stored.write_text("{ damaged")
    assert train_tokenizer(str(text_file), 350, str(tmp_path)).identity == first.identity
    assert json.loads(stored.read_text())
    train_tokenizer(str(text_file), 351, str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_cache_folder_that_cannot_be_written_does_not_matter(text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert train_tokenizer(str(text_file), 350, str(tmp_path / "file" / "below")).size == 350


def test_without_a_text_every_byte_is_a_token() -> None:
    made = train_tokenizer(None, 1024, None)
    assert made.size == 258
    assert len(made.encode(TRICKY, add_special_tokens=False)) == len(TRICKY.encode())
    assert made.decode(made.encode(TRICKY, add_special_tokens=True), skip_special_tokens=True) == TRICKY


def test_a_text_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tokenizer_text"):
        train_tokenizer(str(tmp_path / "missing.txt"), 400, str(tmp_path))


def test_a_pretrained_folder_is_the_same_model(make, engine, text_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    engine.model.save_pretrained(folder)
    identity = engine.tokenizer.identity.decode()
    (tmp_path / "tokenizer.json").write_text(identity)
    PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    loaded = make_engine(TransformersOptions(), str(folder))
    assert loaded.info.layout == engine.info.layout
    assert loaded.info.eos_token_ids == engine.info.eos_token_ids == {1}
    tokens = engine.tokenize(TRICKY)
    assert loaded.tokenize(TRICKY) == tokens
    assert loaded.detokenize(tokens) == TRICKY
    texts = []
    for made in (engine, loaded):
        sequence = made.start(tokens, prefix=None, prefill_block=16, sampling=SamplingParams(temperature=0))
        texts.append([sequence.prefill(), *(sequence.decode() for _ in range(15))])
    assert texts[0] == texts[1]
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [1, 7, 9]}))
    assert make_engine(TransformersOptions(), str(folder)).info.eos_token_ids == {1, 7, 9}
    with pytest.raises(ConfigError, match="its own tokenizer"):
        make_engine(TransformersOptions(tokenizer_text=str(text_file)), str(folder))
    (folder / "config.json").write_text("{}")
    with pytest.raises(ConfigError):
        make_engine(TransformersOptions(), str(folder))


@pytest.mark.parametrize(
    "special",
    [
        {"sliding_window": 64},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"layer_types": ["linear_attention"], "sliding_window": None},
    ],
)
def test_models_that_forget_tokens_are_refused(special: dict[str, object]) -> None:
    usual = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}
    assert kv_layout(SimpleNamespace(**usual, head_dim=None), "float32").head_dim == 16
    with pytest.raises(ConfigError, match="cannot be reused"):
        kv_layout(SimpleNamespace(**usual, **special), "float32")
    unused = SimpleNamespace(**usual, sliding_window=64, use_sliding_window=False)
    assert kv_layout(unused, "float32").num_kv_heads == 2
