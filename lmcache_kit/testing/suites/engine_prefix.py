"""Prefixes that are loaded instead of computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lmcache_kit.contracts.engine import Engine
from lmcache_kit.kv.layout import KVTensor
from lmcache_kit.testing.suites.base import examples
from lmcache_kit.testing.suites.engine_runs import OUTPUT, bits, check_near, complete, prompts

__all__ = ["EnginePrefixTests"]


class EnginePrefixTests:
    """Part of :class:`lmcache_kit.testing.EngineTests`."""

    @pytest.mark.capability("deterministic")
    def test_a_loaded_prefix_gives_the_same_tokens_as_a_computed_one(self, subject: Engine) -> None:
        @examples(25)
        @given(tokens=prompts(subject, min_size=2), block=st.integers(1, 80), data=st.data())
        def check(tokens: list[int], block: int, data: st.DataObject) -> None:
            # Where a store hands over: after whole blocks, and before the last token of a prompt that it has whole.
            ends = sorted({*range(block, len(tokens), block), len(tokens) - 1})
            end = data.draw(st.sampled_from(ends), label="tokens of the prefix")
            computed = complete(subject, tokens, block=block)
            loaded = complete(subject, tokens, block=block, prefix=computed.kv.tokens(0, end))
            assert loaded.output == computed.output, (
                f"{len(tokens)} tokens in blocks of {block} continue with {computed.output}, "
                f"and with {loaded.output} when the KV of the first {end} is handed in"
            )
            check_near(loaded.kv, computed.kv, f"KV with the first {end} tokens handed in")

        check()

    @pytest.mark.capability("deterministic")
    def test_any_split_and_any_block_compute_the_same_kv(self, subject: Engine) -> None:
        @examples(25)
        @given(
            tokens=prompts(subject, min_size=2),
            blocks=st.tuples(st.integers(1, 80), st.integers(1, 80)),
            data=st.data(),
        )
        def check(tokens: list[int], blocks: tuple[int, int], data: st.DataObject) -> None:
            end = data.draw(st.integers(0, len(tokens) - 1), label="tokens of the prefix")
            computed = complete(subject, tokens, block=blocks[0], count=1)
            prefix = computed.kv.tokens(0, end)
            loaded = complete(subject, tokens, block=blocks[1], prefix=prefix if end else None, count=1)
            check_near(
                loaded.kv, computed.kv, f"KV of {len(tokens)} tokens, {end} handed in, blocks of {blocks[1]} tokens,"
            )

        check()

    def test_the_prefix_handed_in_is_kept_and_not_computed_again(self, subject: Engine) -> None:
        @examples(20)
        @given(tokens=prompts(subject, min_size=2), other=prompts(subject, min_size=1), data=st.data())
        def check(tokens: list[int], other: list[int], data: st.DataObject) -> None:
            end = data.draw(st.integers(1, len(tokens) - 1), label="tokens of the prefix")
            # KV of other tokens, so that computing it again cannot give the same.
            prefix = complete(subject, (other * len(tokens))[:end], count=1).kv.tokens(0, end)
            kept = complete(subject, tokens, prefix=prefix).kv.tokens(0, end)
            assert bits(kept) == bits(prefix), (
                f"KV of the first {end} of {len(tokens)} tokens is not what was handed in"
            )

        check()

    def test_what_follows_depends_on_the_prefix_handed_in(self, subject: Engine) -> None:
        vocabulary = subject.info.vocab_size
        tokens = [(number * 37 + 11) % vocabulary for number in range(40)]
        true = complete(subject, tokens)
        for end in (8, 16, 39):
            changed = 0
            for step in (5, 7, 11):
                other = [(number * step + 3) % vocabulary for number in range(end)]
                prefix = complete(subject, other, count=1).kv.tokens(0, end)
                got = complete(subject, tokens, prefix=prefix)
                rest, want = got.kv.tokens(end, got.kv.num_tokens), true.kv.tokens(end, true.kv.num_tokens)
                changed += got.output != true.output or bits(rest) != bits(want)
            assert changed, (
                f"whatever is handed in as KV of the first {end} of 40 tokens, the tokens and the KV that follow are "
                "the same: it is not used"
            )

    def test_the_prefix_handed_in_is_only_read(self, subject: Engine) -> None:
        @examples(10)
        @given(tokens=prompts(subject, min_size=2), data=st.data())
        def check(tokens: list[int], data: st.DataObject) -> None:
            end = data.draw(st.integers(1, len(tokens) - 1), label="tokens of the prefix")
            computed = complete(subject, tokens)
            own = computed.kv.tokens(0, end)
            raw = bits(own)
            complete(subject, tokens, prefix=own)
            assert bits(own) == raw, "the prefix was changed"
            # Read-only memory, as of a file that is mapped.
            mapped = KVTensor.from_bytes(raw, subject.info.layout, end)
            assert bits(complete(subject, tokens, prefix=mapped).kv.tokens(0, end)) == raw

        check()

    @pytest.mark.capability("deterministic")
    def test_a_turn_continues_from_the_kv_of_the_turn_before(self, subject: Engine) -> None:
        @examples(10)
        @given(first=prompts(subject), question=prompts(subject))
        def check(first: list[int], question: list[int]) -> None:
            done = complete(subject, first)
            tokens = [*first, *done.output, *question]
            assume(len(tokens) + OUTPUT < subject.info.max_model_len)
            loaded = complete(subject, tokens, prefix=done.kv)
            check_near(loaded.kv, complete(subject, tokens).kv, "KV of a second turn")

        check()

    @pytest.mark.capability("deterministic")
    def test_two_engines_of_the_same_options_are_the_same_model(
        self, subject: Engine, make_engine: Callable[[], Engine]
    ) -> None:
        other = make_engine()
        try:
            assert other.info == subject.info, "two engines of the same options differ in what they say of themselves"
            tokens = [(number * 37 + 11) % subject.info.vocab_size for number in range(40)]
            ours, theirs = complete(subject, tokens), complete(other, tokens)
            assert theirs.output == ours.output, "two engines with the same fingerprint give different tokens"
            assert bits(theirs.kv) == bits(ours.kv), "two engines with the same fingerprint compute different KV"
            loaded = complete(other, tokens, prefix=ours.kv.tokens(0, 32))
            assert loaded.output == ours.output, (
                "KV of one engine gives other tokens in another of the same fingerprint"
            )
        finally:
            other.close()
