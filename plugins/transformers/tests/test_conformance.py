"""The engine keeps the contract, with models small enough for the whole suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmcache_kit.testing import EngineTests

CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
}


class TestTransformers(EngineTests):
    """Every byte is a token, the KV is float32."""

    @pytest.fixture
    def plugin(self):
        return "transformers"

    @pytest.fixture
    def model(self):
        return "small"

    @pytest.fixture
    def options(self):
        return {"config": CONFIG}


class TestTransformersInHalfPrecision(TestTransformers):
    """A trained tokenizer and bfloat16: what a model on an accelerator has, in the same number formats."""

    @pytest.fixture
    def model(self):
        return "tiny-llama"

    @pytest.fixture
    def options(self, text_file: Path, tmp_path_factory: pytest.TempPathFactory):
        cache = tmp_path_factory.getbasetemp() / "tokenizers"
        return {
            "config": CONFIG,
            "tokenizer_text": str(text_file),
            "vocab_size": 400,
            "dtype": "bfloat16",
            "cache_dir": str(cache),
        }
