from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from lmcache_kit.builtin.workloads.distinct import distinct_tokens, without_repeats

prompts = st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, 2), max_size=9)), max_size=10)


@settings(deadline=None)
@given(prompts, st.integers(1, 4))
def test_distinct_tokens_are_those_of_distinct_chunks(given_prompts: list[tuple[str, list[int]]], size: int) -> None:
    """Oracle: a chunk is everything up to its end."""
    chunks = {
        (owner, tuple(tokens[: start + size])): len(tokens[start : start + size])
        for owner, tokens in given_prompts
        for start in range(0, len(tokens), size)
    }
    assert distinct_tokens(given_prompts, size) == sum(chunks.values())


@settings(deadline=None)
@given(prompts)
def test_without_repeats_keeps_the_first_of_each(given_prompts: list[tuple[str, list[int]]]) -> None:
    kept = without_repeats(given_prompts)
    assert kept == [place for place, each in enumerate(given_prompts) if each not in given_prompts[:place]]
