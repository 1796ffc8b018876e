"""The synthetic engine: KV from tokens, text from KV."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from lmcache_kit.builtin.engines.options import SyntheticOptions
from lmcache_kit.builtin.engines.synthetic import BOS, EOS, SyntheticEngine
from lmcache_kit.contracts import EnginePlugin, SamplingParams
from lmcache_kit.errors import ConfigError, InvalidRequestError
from lmcache_kit.kv import KVLayout, KVTensor
from lmcache_kit.plugins import registry

GREEDY = SamplingParams(temperature=0)


def engine(**options: Any) -> SyntheticEngine:
    return SyntheticEngine(SyntheticOptions(**{"num_layers": 2, "num_kv_heads": 1, "head_dim": 8, **options}), "m")


def run(made: SyntheticEngine, tokens: list[int], *, prefix: KVTensor | None = None, count: int = 12) -> list[int]:
    sequence = made.start(tokens, prefix=prefix, prefill_block=16, sampling=GREEDY)
    return [sequence.prefill(), *(sequence.decode() for _ in range(count - 1))]


def kv_of(made: SyntheticEngine, tokens: list[int]) -> KVTensor:
    sequence = made.start(tokens, prefix=None, prefill_block=16, sampling=GREEDY)
    sequence.prefill()
    return sequence.kv(0, len(tokens))


def test_it_is_a_plugin_and_its_options_are_checked() -> None:
    record = registry().get(EnginePlugin, "synthetic")
    made = record.factory(registry().options(record, {"num_layers": 3, "dtype": "float16"}), "name")
    assert made.info.model == "name"
    assert made.info.layout == KVLayout(3, 2, 32, "float16")
    for wrong in ({"num_layers": 0}, {"dtype": "float64"}, {"prefill_seconds_per_token": -1}, {"layers": 1}):
        with pytest.raises(ConfigError):
            registry().options(record, wrong)


def test_text_does_not_depend_on_the_process() -> None:
    here = run(engine(), list(b"a prompt of bytes"))
    code = (
        "from lmcache_kit.builtin.engines.options import SyntheticOptions as O\n"
        "from lmcache_kit.builtin.engines.synthetic import SyntheticEngine as E\n"
        "from lmcache_kit.contracts import SamplingParams as S\n"
        "e = E(O(num_layers=2, num_kv_heads=1, head_dim=8), 'm')\n"
        "s = e.start(list(b'a prompt of bytes'), prefix=None, prefill_block=16, sampling=S(temperature=0))\n"
        "print([s.prefill()] + [s.decode() for _ in range(11)])"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert there.stdout.strip() == str(here)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_bit_of_the_prefix_matters(dtype: str) -> None:
    made = engine(dtype=dtype)
    tokens = list(b"the quick brown fox jumps over the lazy dog")
    kv = kv_of(made, tokens).tokens(0, 40)
    text = run(made, tokens, prefix=kv)
    assert text == run(made, tokens)
    bits = np.random.default_rng(1)
    for _ in range(200):
        damaged = kv.tokens(0, 40)
        raw = damaged.data.reshape(-1).view(np.uint8)
        raw[bits.integers(raw.size)] ^= np.uint8(1 << bits.integers(8))
        assert run(made, tokens, prefix=damaged) != text


def test_kv_of_other_tokens_or_in_another_order_gives_another_text() -> None:
    made = engine()
    tokens = list(b"abcdefghijklmnop")
    kv, text = kv_of(made, tokens).tokens(0, 12), run(made, tokens)
    other = kv_of(made, list(b"Xbcdefghijklmnop")).tokens(0, 12)
    assert run(made, tokens, prefix=other) != text
    swapped = kv.tokens(0, 12)
    swapped.data[:, :, [3, 4]] = swapped.data[:, :, [4, 3]]
    assert run(made, tokens, prefix=swapped) != text
    planes = kv.tokens(0, 12)
    planes.data[:] = planes.data[:, ::-1]
    assert run(made, tokens, prefix=planes) != text


def test_kv_depends_on_all_tokens_before_and_on_none_after() -> None:
    made = engine()
    first, second = kv_of(made, list(b"aaaaaaaa")), kv_of(made, list(b"aaabaaaa"))
    same = [bool((first.data[:, :, t] == second.data[:, :, t]).all()) for t in range(8)]
    assert same == [True] * 3 + [False] * 5
    values = first.data.astype(np.float32)
    assert np.isfinite(values).all()
    assert np.abs(values).max() <= 1


def test_another_seed_or_layout_is_another_model_and_pace_is_not() -> None:
    prints = {
        engine(**options).info.fingerprint for options in ({}, {"seed": 1}, {"head_dim": 16}, {"dtype": "float16"})
    }
    assert len(prints) == 4
    assert engine(decode_seconds=1, max_model_len=99).info.fingerprint == engine().info.fingerprint
    assert all(re.fullmatch(r"[0-9a-z_-]{1,64}", name) for name in prints)
    assert run(engine(seed=1), [1, 2, 3]) != run(engine(), [1, 2, 3])


def test_kv_can_be_asked_for_in_any_pieces_and_is_a_copy() -> None:
    made = engine()
    sequence = made.start(list(b"hello there"), prefix=None, prefill_block=4, sampling=GREEDY)
    with pytest.raises(InvalidRequestError, match="0 are computed"):
        sequence.kv(0, 1)
    sequence.prefill()
    whole = sequence.kv(0, 11)
    assert KVTensor.concat([sequence.kv(0, 5), sequence.kv(5, 5), sequence.kv(5, 11)]).data.tobytes() == (
        whole.data.tobytes()
    )
    with pytest.raises(InvalidRequestError):
        sequence.kv(0, 12)
    whole.data[:] = 0
    assert sequence.kv(0, 11).data.any()
    sequence.decode()
    assert sequence.kv(0, 12).num_tokens == 12
    sequence.close()
    sequence.close()


@pytest.mark.parametrize("tokens", [[], [-1], [258], [0, 10**6], [0] * 64])
def test_impossible_prompts_are_refused(tokens: list[int]) -> None:
    with pytest.raises(InvalidRequestError):
        engine(max_model_len=64).start(tokens, prefix=None, prefill_block=16, sampling=GREEDY)


def test_impossible_prefixes_are_refused() -> None:
    made = engine()
    with pytest.raises(InvalidRequestError):
        made.start([1, 2], prefix=KVTensor.empty(made.info.layout, 2), prefill_block=16, sampling=GREEDY)
    with pytest.raises(InvalidRequestError):
        made.start([1, 2], prefix=KVTensor.empty(KVLayout(1, 1, 8), 1), prefill_block=16, sampling=GREEDY)


def test_sampling_follows_its_seed() -> None:
    made = engine()

    def sample(seed: int | None) -> list[int]:
        params = SamplingParams(temperature=1, seed=seed)
        sequence = made.start([1, 2, 3], prefix=None, prefill_block=16, sampling=params)
        return [sequence.prefill(), *(sequence.decode() for _ in range(15))]

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert sample(0) != run(made, [1, 2, 3], count=16)
    assert sample(None) != sample(None)
    sequence = made.start([1, 2, 3], prefix=None, prefill_block=16, sampling=SamplingParams(temperature=1, top_k=1))
    assert sequence.prefill() == run(made, [1, 2, 3])[0]


def test_special_tokens_and_text() -> None:
    made = engine()
    assert made.tokenize("é") == [BOS, 0xC3, 0xA9]
    assert made.tokenize("é", add_special_tokens=False) == [0xC3, 0xA9]
    assert made.detokenize([BOS, 0xC3, 0xA9, EOS]) == "é"
    assert made.detokenize([BOS, 0xC3, 0xA9, EOS], skip_special_tokens=False) == "<s>é</s>"
    assert made.detokenize([0xC3]) == "�"
    assert [made.token_text(token) for token in (BOS, 65, EOS)] == ["<s>", "A", "</s>"]


def test_paces_sleep_for_computed_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    made = engine(prefill_seconds_per_token=0.5, decode_seconds=0.25)
    kv = kv_of(made, list(range(10)))
    slept.clear()
    run(made, list(range(10)), prefix=kv.tokens(0, 8), count=3)
    assert slept == [1.0, 0.25, 0.25]
