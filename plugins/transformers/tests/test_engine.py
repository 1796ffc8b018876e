"""The engine against transformers' own generation, and computed prefixes against loaded ones."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from lmcache_kit.contracts import SamplingParams
from lmcache_kit.errors import ConfigError, InvalidRequestError
from lmcache_kit.kv import KVLayout, KVTensor

GREEDY = SamplingParams(temperature=0)
BLOCK = 32


def prompt_of(length: int) -> list[int]:
    return [0, *(2 + (7 * number * number + number) % 390 for number in range(length - 1))]


def run(
    engine: Any, tokens: list[int], *, prefix: KVTensor | None = None, block: int = BLOCK, count: int = 12
) -> tuple[list[int], Any]:
    sequence = engine.start(tokens, prefix=prefix, prefill_block=block, sampling=GREEDY)
    return [sequence.prefill(), *(sequence.decode() for _ in range(count - 1))], sequence


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 150])
def test_text_and_kv_are_those_of_transformers_itself(engine, length: int) -> None:
    tokens = prompt_of(length)
    text, sequence = run(engine, tokens)
    cache = DynamicCache()
    with torch.inference_mode():
        whole = engine.model.generate(
            torch.tensor([tokens]),
            attention_mask=torch.ones(1, length, dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
            past_key_values=cache,
            eos_token_id=None,
            pad_token_id=1,
        )[0].tolist()
    assert whole[length:] == text
    kv = sequence.kv(0, length + 11).data
    # Before 4.54 a cache kept two lists instead of layers.
    layers = (
        [(layer.keys, layer.values) for layer in cache.layers]
        if hasattr(cache, "layers")
        else list(zip(cache.key_cache, cache.value_cache, strict=True))
    )
    expected = np.stack([[plane[0].transpose(0, 1).numpy() for plane in planes] for planes in layers])
    np.testing.assert_allclose(kv, expected[:, :, : length + 11], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("length", [33, 96, 97, 128, 150])
def test_a_prefix_of_whole_blocks_gives_the_same_bits(make, dtype: str, length: int) -> None:
    engine = make(dtype=dtype)
    tokens = prompt_of(length)
    text, cold = run(engine, tokens)
    kv = cold.kv(0, length)
    after = cold.kv(length, length + 11).data.tobytes()
    for boundary in range(BLOCK, length, BLOCK):
        warm_text, warm = run(engine, tokens, prefix=kv.tokens(0, boundary))
        assert warm_text == text
        assert warm.kv(0, length).data.tobytes() == kv.data.tobytes()
        assert warm.kv(length, length + 11).data.tobytes() == after
        assert warm.computed_tokens - (length % BLOCK == 0) == length - boundary


@pytest.mark.parametrize("length", [2, 33, 96, 128, 150])
def test_a_full_hit_computes_one_token_and_gives_the_same_bits(engine, length: int) -> None:
    tokens = prompt_of(length)
    text, cold = run(engine, tokens)
    kv = cold.kv(0, length)
    warm_text, warm = run(engine, tokens, prefix=kv.tokens(0, length - 1))
    assert warm_text == text
    assert warm.computed_tokens == 1
    assert warm.kv(0, length - 1).data.tobytes() == kv.tokens(0, length - 1).data.tobytes()
    assert warm.kv(length, length + 11).data.tobytes() == cold.kv(length, length + 11).data.tobytes()
    if length % BLOCK:
        assert warm.kv(0, length).data.tobytes() == kv.data.tobytes()


@pytest.mark.parametrize("shared", [32, 64, 96])
def test_chunks_of_a_prompt_that_ended_there_serve_a_longer_one_bit_for_bit(engine, shared: int) -> None:
    tokens = prompt_of(140)
    _, shorter = run(engine, tokens[:shared], count=3)
    text, cold = run(engine, tokens)
    warm_text, warm = run(engine, tokens, prefix=shorter.kv(0, shared))
    assert warm_text == text
    assert warm.kv(0, 140).data.tobytes() == cold.kv(0, 140).data.tobytes()


@pytest.mark.parametrize("prefix", [1, 5, 31, 45, 99])
def test_a_prefix_inside_a_block_gives_the_same_text_and_nearly_the_same_kv(engine, prefix: int) -> None:
    tokens = prompt_of(100)
    text, cold = run(engine, tokens)
    kv = cold.kv(0, 100)
    warm_text, warm = run(engine, tokens, prefix=kv.tokens(0, prefix))
    assert warm_text == text
    assert warm.computed_tokens == 100 - prefix
    assert warm.kv(0, prefix).data.tobytes() == kv.tokens(0, prefix).data.tobytes()
    np.testing.assert_allclose(warm.kv(0, 100).data, kv.data, rtol=1e-3, atol=1e-4)


def test_other_kv_gives_another_text(engine) -> None:
    tokens = prompt_of(100)
    text, cold = run(engine, tokens)
    _, other = run(engine, [0, *reversed(tokens[1:])])
    assert run(engine, tokens, prefix=other.kv(0, 64))[0] != text
    zeros = cold.kv(0, 96)
    zeros.data[:] = 0
    assert run(engine, tokens, prefix=zeros)[0] != text


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_the_block_size_does_not_change_the_text(engine, block: int) -> None:
    tokens = prompt_of(100)
    assert run(engine, tokens, block=block)[0] == run(engine, tokens)[0]


def test_kv_from_read_only_memory(engine) -> None:
    tokens = prompt_of(80)
    text, cold = run(engine, tokens)
    raw = bytes(cold.kv(0, 64).tobytes_view())
    prefix = KVTensor.from_bytes(raw, engine.info.layout, 64)
    assert not prefix.data.flags.writeable
    assert run(engine, tokens, prefix=prefix)[0] == text
    assert bytes(prefix.tobytes_view()) == raw


def test_a_sequence_grows_past_its_first_capacity(engine) -> None:
    tokens = prompt_of(200)
    text, sequence = run(engine, tokens, count=400)
    warm_text, warm = run(engine, tokens + text[:200], count=200)
    assert warm_text == text[200:]
    np.testing.assert_allclose(warm.kv(0, 400).data, sequence.kv(0, 400).data, rtol=1e-3, atol=1e-4)


def test_kv_is_a_copy_in_any_pieces(engine) -> None:
    _, sequence = run(engine, prompt_of(64), count=3)
    whole = sequence.kv(0, 66)
    parts = KVTensor.concat([sequence.kv(0, 10), sequence.kv(10, 63), sequence.kv(63, 64), sequence.kv(64, 66)])
    assert parts.data.tobytes() == whole.data.tobytes()
    whole.data[:] = 0
    assert sequence.kv(0, 1).data.any()
    with pytest.raises(InvalidRequestError, match="66 are computed"):
        sequence.kv(0, 67)
    sequence.close()
    sequence.close()
    with pytest.raises(InvalidRequestError, match="closed"):
        sequence.kv(0, 1)


def test_impossible_requests(make) -> None:
    engine = make(max_model_len=40)
    layout = engine.info.layout
    for tokens in ([], [-1], [400], [0] * 40):
        with pytest.raises(InvalidRequestError):
            engine.start(tokens, prefix=None, prefill_block=BLOCK, sampling=GREEDY)
    for prefix in (KVTensor.empty(layout, 2), KVTensor.empty(KVLayout(1, 2, 16, "float32"), 1)):
        with pytest.raises(InvalidRequestError):
            engine.start([1, 2], prefix=prefix, prefill_block=BLOCK, sampling=GREEDY)
    sequence = engine.start(prompt_of(38), prefix=None, prefill_block=BLOCK, sampling=GREEDY)
    sequence.prefill()
    sequence.decode()
    with pytest.raises(InvalidRequestError, match="full"):
        sequence.decode()


def test_fingerprints_tell_models_apart(make, engine, tmp_path) -> None:
    assert re.fullmatch(r"[0-9a-f]{32}", engine.info.fingerprint)
    assert make("other-name", max_model_len=100, threads=1).info.fingerprint == engine.info.fingerprint
    others = [
        make(seed=1),
        make(dtype="bfloat16"),
        make(config={"rope_theta": 500.0}),
        make(config={"initializer_range": 0.1}),
        make(vocab_size=390),
        make(tokenizer_text=None, config={"vocab_size": 400}),
    ]
    assert len({made.info.fingerprint for made in [engine, *others]}) == 7


def test_weights_depend_on_the_seed_and_not_on_what_was_random_before(make, engine) -> None:
    torch.manual_seed(12345)
    again = make()
    assert again.info.fingerprint == engine.info.fingerprint
    assert run(again, prompt_of(50))[0] == run(engine, prompt_of(50))[0]


def test_sampling(engine) -> None:
    def sample(**params: Any) -> list[int]:
        sequence = engine.start(prompt_of(20), prefix=None, prefill_block=BLOCK, sampling=SamplingParams(**params))
        return [sequence.prefill(), *(sequence.decode() for _ in range(11))]

    assert sample(seed=1) == sample(seed=1)
    assert sample(seed=1) != sample(seed=2)
    greedy = run(engine, prompt_of(20))[0]
    assert sample(seed=1, top_k=1) == greedy
    assert sample(seed=1, top_p=1e-9) == greedy
    assert sample(temperature=1e-6, seed=3) == greedy


def test_a_gpu_that_is_not_there(make) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match="no such GPU"):
        make(device="cuda")


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"hidden_sise": 64}, "hidden_size"),
        ({"vocab_size": 100}, "vocab_size 100"),
        ({"num_key_value_heads": 3}, "cannot be computed"),
        ({"hidden_size": "many"}, "cannot make a Llama"),
    ],
)
def test_configurations_that_make_no_model(make, config: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(config=config)
    assert what in caught.value.detail


def test_max_model_len_above_the_models_own(make) -> None:
    with pytest.raises(ConfigError, match="max_position_embeddings 1024"):
        make(max_model_len=2000)
