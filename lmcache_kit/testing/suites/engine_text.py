"""What an engine says of itself, and its tokenizer."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache_kit.contracts.engine import DeclaresCosts, Engine, EngineInfo
from lmcache_kit.kv.layout import KVLayout
from lmcache_kit.testing.strategies import token_lists
from lmcache_kit.testing.suites.base import examples

__all__ = ["EngineTextTests"]

_FINGERPRINT = re.compile(r"[a-z0-9_-]{1,64}")
_words = st.lists(st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=8), min_size=1, max_size=12)


class EngineTextTests:
    """Part of :class:`lmcache_kit.testing.EngineTests`."""

    def test_info_is_complete_and_stays_the_same(self, subject: Engine) -> None:
        info = subject.info
        assert isinstance(info, EngineInfo)
        assert isinstance(info.layout, KVLayout)
        assert info.model, "the model has no name"
        assert info.vocab_size >= 1
        assert info.max_model_len >= 2, "there is no room for a prompt and an output token"
        strange = [token for token in info.eos_token_ids if not 0 <= token < info.vocab_size]
        assert not strange, f"end tokens {strange} are not in a vocabulary of {info.vocab_size}"
        assert subject.info == info

    def test_the_fingerprint_can_be_part_of_a_name(self, subject: Engine) -> None:
        fingerprint = subject.info.fingerprint
        assert _FINGERPRINT.fullmatch(fingerprint), (
            f"the fingerprint {fingerprint!r} is not 1 to 64 lower-case letters, digits, - and _"
        )

    @pytest.mark.ability.with_args(DeclaresCosts)
    def test_declared_costs_have_the_simulators_names(self, subject: DeclaresCosts) -> None:
        from lmcache_kit.sim.costs import EngineCosts

        costs = dict(subject.step_costs())
        try:
            msgspec.convert(costs, EngineCosts, strict=True)
        except msgspec.ValidationError as error:
            raise AssertionError(f"step_costs() answers {costs}: {error}") from None

    def test_words_survive_tokenizing(self, subject: Engine) -> None:
        @examples(50)
        @given(words=_words)
        def check(words: list[str]) -> None:
            text = " ".join(words)
            got = subject.detokenize(subject.tokenize(text))
            assert got.strip().casefold() == text, f"{text!r} comes back as {got!r}"

        check()

    def test_any_text_becomes_tokens_of_the_vocabulary(self, subject: Engine) -> None:
        @examples(80)
        @given(text=st.text(max_size=60))
        def check(text: str) -> None:
            tokens = subject.tokenize(text)
            strange = [token for token in tokens if not 0 <= token < subject.info.vocab_size]
            assert not strange, f"{text!r} becomes {strange}, outside a vocabulary of {subject.info.vocab_size}"
            assert subject.tokenize(text) == tokens, f"{text!r} becomes other tokens the second time"
            once = subject.detokenize(tokens)
            again = subject.detokenize(subject.tokenize(once))
            assert again == once, f"{once!r} does not survive tokenizing again: {again!r}"

        check()

    def test_special_tokens_are_added_and_left_out_as_asked(self, subject: Engine) -> None:
        @examples(50)
        @given(words=_words)
        def check(words: list[str]) -> None:
            text = " ".join(words)
            bare, whole = subject.tokenize(text, add_special_tokens=False), subject.tokenize(text)
            ends = len(whole) - len(bare)
            assert any(whole[skip : skip + len(bare)] == bare for skip in range(ends + 1)), (
                f"{text!r} is {bare} without and {whole} with special tokens: not the same with something around it"
            )
            plain = subject.detokenize(bare)
            assert subject.detokenize(bare, skip_special_tokens=False) == plain, (
                f"add_special_tokens=False makes {bare} of {text!r}, with special tokens"
            )
            assert subject.detokenize(whole).strip() == plain.strip(), "special tokens are in the text"
            assert plain.strip() in subject.detokenize(whole, skip_special_tokens=False)

        check()

    def test_any_tokens_have_a_text(self, subject: Engine) -> None:
        @examples(50)
        @given(tokens=token_lists(vocab_size=subject.info.vocab_size, max_size=30), skip=st.booleans())
        def check(tokens: list[int], skip: bool) -> None:
            text = subject.detokenize(tokens, skip_special_tokens=skip)
            assert isinstance(text, str)
            assert subject.detokenize(tokens, skip_special_tokens=skip) == text

        check()

    def test_every_token_has_an_entry(self, subject: Engine) -> None:
        last = subject.info.vocab_size - 1
        for token in {*range(min(last, 600) + 1), *range(max(0, last - 300), last + 1), *subject.info.eos_token_ids}:
            entry = subject.token_text(token)
            assert isinstance(entry, str), f"the entry of token {token} is {entry!r}"
