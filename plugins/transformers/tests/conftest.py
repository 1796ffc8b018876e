"""A small Llama with a tokenizer trained on a few paragraphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lmcache_kit_transformers.engine import TransformersEngine, make_engine
from lmcache_kit_transformers.options import TransformersOptions

CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,  # wide, so that the output depends visibly on everything before it
}

TEXT = """\
The testbed boots a controller and a few instances, and each of them computes keys and values for real.
A chunk is a run of tokens; its key covers every token before it, so equal prefixes meet in the same chunk.
What was computed once can be loaded, and what is loaded must not change a single letter of the answer.
"""

MakeEngine = Callable[..., TransformersEngine]


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text(TEXT * 3, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def make(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeEngine:
    """Makes an engine; keyword arguments are options, ``config`` is merged into the small one."""
    cache = tmp_path_factory.mktemp("tokenizers")

    def made(model: str = "tiny", config: dict[str, Any] | None = None, **options: Any) -> TransformersEngine:
        values = {"tokenizer_text": str(text_file), "vocab_size": 400, "cache_dir": str(cache), **options}
        return make_engine(TransformersOptions(config={**CONFIG, **(config or {})}, **values), model)

    return made


@pytest.fixture(scope="session")
def engine(make: MakeEngine) -> TransformersEngine:
    return make()
