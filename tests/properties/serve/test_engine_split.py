"""Whatever part of a prompt comes as KV, the text and the KV are the same."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from lmcache_kit.builtin.engines.options import SyntheticOptions
from lmcache_kit.builtin.engines.synthetic import SyntheticEngine
from lmcache_kit.contracts import SamplingParams
from lmcache_kit.kv import KVTensor

GREEDY = SamplingParams(temperature=0)
ENGINES = {
    dtype: SyntheticEngine(SyntheticOptions(num_layers=2, num_kv_heads=2, head_dim=4, dtype=dtype), "m")
    for dtype in ("bfloat16", "float16", "float32")
}


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(sorted(ENGINES)),
    tokens=st.lists(st.integers(0, 257), min_size=1, max_size=80),
    split=st.floats(0, 1, exclude_max=True),
    block=st.integers(1, 90),
    outputs=st.integers(1, 8),
)
def test_any_prefix(dtype: str, tokens: list[int], split: float, block: int, outputs: int) -> None:
    engine = ENGINES[dtype]

    def run(prefix: KVTensor | None, prefill_block: int) -> tuple[list[int], bytes]:
        sequence = engine.start(tokens, prefix=prefix, prefill_block=prefill_block, sampling=GREEDY)
        made = [sequence.prefill(), *(sequence.decode() for _ in range(outputs - 1))]
        return made, sequence.kv(0, len(tokens) + outputs - 1).data.tobytes()

    cold = engine.start(tokens, prefix=None, prefill_block=block, sampling=GREEDY)
    cold.prefill()
    length = int(split * len(tokens))
    expected = run(None, block)
    assert run(cold.kv(0, length), block) == expected
    assert run(None, 16) == expected


@settings(max_examples=60, deadline=None)
@given(prompt=st.lists(st.integers(0, 255), min_size=1, max_size=40), turns=st.integers(1, 4))
def test_output_tokens_of_one_turn_are_a_prefix_of_the_next(prompt: list[int], turns: int) -> None:
    engine, tokens, kv = ENGINES["bfloat16"], list(prompt), None
    for _ in range(turns):
        warm = engine.start(tokens, prefix=kv, prefill_block=16, sampling=GREEDY)
        cold = engine.start(tokens, prefix=None, prefill_block=16, sampling=GREEDY)
        made = [warm.prefill(), warm.decode(), warm.decode()]
        assert made == [cold.prefill(), cold.decode(), cold.decode()]
        tokens += made
        kv = warm.kv(0, len(tokens) - 1)
