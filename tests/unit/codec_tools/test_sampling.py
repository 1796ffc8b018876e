from __future__ import annotations

import pytest

from lmcache_kit.cli.serve import make_engine
from lmcache_kit.codec_tools import sample_kv
from lmcache_kit.errors import ConfigError


@pytest.fixture
def engine():
    options = {"num_layers": 2, "num_kv_heads": 2, "head_dim": 4, "max_model_len": 20}
    return make_engine("synthetic", "m", options, max_model_len=None)


def test_the_kv_is_that_of_the_first_tokens(engine) -> None:
    whole, part = sample_kv(engine, "abcdefghij"), sample_kv(engine, "abcdefghij", 4)
    assert whole.num_tokens == len(engine.tokenize("abcdefghij"))
    assert part.layout == engine.info.layout
    assert bytes(part.tobytes_view()) == bytes(whole.tokens(0, 4).tobytes_view())


@pytest.mark.parametrize(
    ("text", "tokens", "message"),
    [
        ("abc", 10, "the text has 4 tokens, 10 are asked for"),
        ("a" * 30, None, "m takes 19 tokens, 31 are asked for"),
        ("a" * 30, 20, "m takes 19 tokens, 20 are asked for"),
    ],
)
def test_too_short_and_too_long_are_told(engine, text: str, tokens: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sample_kv(engine, text, tokens)
