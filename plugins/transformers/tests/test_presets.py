"""Models known by name: the documents' token ids, any text, and answers that can be read."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lmcache_kit_transformers.engine import TransformersEngine, make_engine
from lmcache_kit_transformers.options import TransformersOptions
from lmcache_kit_transformers.presets import DEFAULT_MODEL, PRESETS
from lmcache_kit_transformers.wide_tokenizer import wide_tokenizer
from tokenizers import pre_tokenizers

from lmcache_kit.contracts import EnginePlugin, SamplingParams
from lmcache_kit.errors import ConfigError
from lmcache_kit.instance.http.text_stream import IncrementalText
from lmcache_kit.plugins import registry

PROMPT = "Explain the significance of KV cache in language models."
IDS = [128000, 849, 21435, 279, 26431, 315, 85748, 6636, 304, 4221, 4211, 13]
TOKENIZER = wide_tokenizer()


@pytest.fixture(scope="module")
def tiny() -> TransformersEngine:
    return make_engine(TransformersOptions(max_model_len=4096), "tiny-llama-3.1")


def answer(engine: TransformersEngine, tokens: list[int], count: int = 40) -> list[int]:
    sequence = engine.start(tokens, prefix=None, prefill_block=256, sampling=SamplingParams(temperature=0))
    return [sequence.prefill(), *(sequence.decode() for _ in range(count - 1))]


def test_the_documents_prompt_has_the_documents_ids(tiny) -> None:
    assert tiny.tokenize(PROMPT) == IDS
    assert tiny.tokenize(PROMPT, add_special_tokens=False) == IDS[1:]
    assert tiny.detokenize(IDS) == PROMPT
    assert tiny.detokenize(IDS, skip_special_tokens=False) == "<|begin_of_text|>" + PROMPT
    assert [tiny.token_text(token) for token in IDS[1:5]] == ["Ex", "plain", "Ġthe", "Ġsignificance"]


def test_what_the_engine_says_of_itself(tiny) -> None:
    info = tiny.info
    assert (info.vocab_size, info.max_model_len) == (128256, 4096)
    assert info.eos_token_ids == {128001, 128009}
    assert make_engine(TransformersOptions(), "tiny-llama-3.1").info.fingerprint == info.fingerprint


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.text(alphabet="Explain the KV.<|>\n"))
def test_any_text_comes_back(text: str) -> None:
    tokens = TOKENIZER.encode(text, add_special_tokens=True)
    assert TOKENIZER.decode(tokens[1:], skip_special_tokens=False) == text
    assert tokens[0] == 128000


@given(st.text(alphabet="cghjqvwxyzäß漢🙂 \n\t0189,.;", max_size=40))
def test_other_words_are_their_bytes(text: str) -> None:
    tokens = TOKENIZER.encode(text, add_special_tokens=False)
    assert len(tokens) == len(text.encode())
    assert max(tokens, default=0) < 256


def test_every_id_has_a_text_of_its_own() -> None:
    pieces = [TOKENIZER.piece(token) for token in range(TOKENIZER.size)]
    assert TOKENIZER.size == len(set(pieces)) == 128256
    assert set(pieces[:256]) == set(pre_tokenizers.ByteLevel.alphabet())
    assert all(re.fullmatch(r"Ġ?[A-Za-z]+", piece) for piece in pieces[256:128000])
    assert all(re.fullmatch(r"<\|\w+\|>", piece) for piece in pieces[128000:])
    assert TOKENIZER.decode(list(range(128000, 128256)), skip_special_tokens=True) == ""
    words = list(range(70000, 70100))
    assert TOKENIZER.encode(TOKENIZER.decode(words, skip_special_tokens=True), add_special_tokens=False) == words


def test_answers_are_words_and_depend_on_the_prompt(tiny) -> None:
    tokens = answer(tiny, IDS)
    text = tiny.detokenize(tokens)
    assert re.fullmatch(r"( [A-Za-z]+|[A-Za-z.]+)+", text)
    assert len(set(tokens)) > 10
    assert answer(tiny, [IDS[0], 850, *IDS[2:]]) != tokens
    stream = IncrementalText(tiny.detokenize, IDS)
    pieces = [stream.push(token) for token in tokens]
    assert "".join(pieces) == text
    assert all(pieces)


def test_options_go_over_the_preset(tiny) -> None:
    deeper = make_engine(TransformersOptions(config={"num_hidden_layers": 6}), "tiny-llama-3.1")
    assert deeper.info.layout.num_layers == 6
    assert deeper.tokenize(PROMPT) == IDS
    assert make_engine(TransformersOptions(seed=1), "tiny-llama-3.1").info.fingerprint != tiny.info.fingerprint
    with pytest.raises(ConfigError, match="brings its own tokenizer"):
        make_engine(TransformersOptions(tokenizer_text="text.txt"), "tiny-llama-3.1")


def test_tiny_llama_takes_a_text_or_none(text_file, tmp_path) -> None:
    plain = make_engine(TransformersOptions(), "tiny-llama")
    assert plain.info.vocab_size == 258
    options = TransformersOptions(tokenizer_text=str(text_file), vocab_size=400, cache_dir=str(tmp_path))
    assert make_engine(options, "tiny-llama").info.vocab_size == 400


def test_an_unknown_model_names_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        make_engine(TransformersOptions(), "tiny-lama")
    assert all(name in caught.value.detail for name in PRESETS)


def test_the_record_names_its_presets() -> None:
    record = registry().get(EnginePlugin, "transformers")
    assert record.default_model == DEFAULT_MODEL
    assert all(name in record.summary for name in PRESETS)


def test_weights_that_nobody_draws_are_not_left_as_the_memory_was(make) -> None:
    model = make(config={"attention_bias": True, "mlp_bias": True}).model
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            assert not weight.any(), name
        elif weight.dim() == 1:
            assert torch.equal(weight, torch.ones_like(weight)), name
        else:
            assert 0.15 < weight.std() < 0.25, name
