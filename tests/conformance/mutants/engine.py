"""Broken engines, made of the synthetic one."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from mutants.mutant import Mutant

from lmcache_kit.builtin.engines.options import SyntheticOptions
from lmcache_kit.builtin.engines.synthetic import SyntheticEngine
from lmcache_kit.contracts.engine import Engine, EngineInfo, EngineSequence, SamplingParams
from lmcache_kit.contracts.records import EnginePlugin, Options
from lmcache_kit.errors import InvalidRequestError
from lmcache_kit.kv.layout import KVLayout, KVTensor

__all__ = ["MUTANTS", "SOUND"]


class Passing(EngineSequence):
    """A sound sequence with room for something wrong around it."""

    def __init__(self, engine: Sound, inner: Any) -> None:
        self.engine = engine
        self.inner = inner

    def prefill(self) -> int:
        return int(self.inner.prefill())

    def decode(self) -> int:
        return int(self.inner.decode())

    def kv(self, start: int, stop: int) -> KVTensor:
        found: KVTensor = self.inner.kv(start, stop)
        return found

    def close(self) -> None:
        self.inner.close()


class Sound(SyntheticEngine):
    sequence_type: type[Passing] = Passing

    def start(
        self, tokens: Sequence[int], *, prefix: KVTensor | None, prefill_block: int, sampling: SamplingParams
    ) -> EngineSequence:
        inner = super().start(tokens, prefix=prefix, prefill_block=prefill_block, sampling=sampling)
        return self.sequence_type(self, inner)


class IgnoresThePrefix(Sound):
    """Right, but what was handed in is computed again."""

    def start(self, tokens, *, prefix, prefill_block, sampling):
        super().start(tokens, prefix=prefix, prefill_block=prefill_block, sampling=sampling).close()
        return super().start(tokens, prefix=None, prefill_block=prefill_block, sampling=sampling)


class HandsThePrefixBack(Sound):
    """Computes with KV of its own, and gives out what it was given."""

    def start(self, tokens, *, prefix, prefill_block, sampling):
        super().start(tokens, prefix=prefix, prefill_block=prefill_block, sampling=sampling).close()
        made = super().start(tokens, prefix=None, prefill_block=prefill_block, sampling=sampling)
        made.prefix = prefix
        return made

    class Parrot(Passing):
        prefix: KVTensor | None = None

        def kv(self, start: int, stop: int) -> KVTensor:
            found = super().kv(start, stop)
            if self.prefix is not None and start < self.prefix.num_tokens:
                end = min(stop, self.prefix.num_tokens)
                found.data[:, :, : end - start] = self.prefix.data[:, :, start:end]
            return found

    sequence_type = Parrot


class UsesHalfThePrefix(Sound):
    """Only whole blocks of the prefix are used; the rest is computed, from nothing."""

    def start(self, tokens, *, prefix, prefill_block, sampling):
        if prefix is not None and prefix.num_tokens % 2:
            prefix = prefix.tokens(0, prefix.num_tokens - 1)
        return super().start(tokens, prefix=prefix, prefill_block=prefill_block, sampling=sampling)


class KeepsThePrefix(Sound):
    """Computes in the array that it was handed."""

    def start(self, tokens, *, prefix, prefill_block, sampling):
        made = super().start(tokens, prefix=prefix, prefill_block=prefill_block, sampling=sampling)
        if prefix is not None and prefix.num_tokens and prefix.data.flags.writeable:
            prefix.data[:, :, 0] = 0
        return made


class KvIsAView(Sound):
    class View(Passing):
        def kv(self, start: int, stop: int) -> KVTensor:
            self.inner.kv(0, 0)  # joins the parts
            if start:
                return super().kv(start, stop)
            whole = self.inner._parts[0]
            if stop == whole.num_tokens:
                return KVTensor(whole.layout, whole.data)
            return super().kv(start, stop)

    sequence_type = View


class KvIsOff(Sound):
    class Off(Passing):
        def kv(self, start: int, stop: int) -> KVTensor:
            return super().kv(start + 1, stop + 1) if self.inner._computed > stop else super().kv(start, stop)

    sequence_type = Off


class KvOfTheLast(Sound):
    """A range that does not begin at 0 is taken from the end."""

    class Last(Passing):
        def kv(self, start: int, stop: int) -> KVTensor:
            end = self.inner._computed
            return super().kv(end - (stop - start), end) if start else super().kv(start, stop)

    sequence_type = Last


class KvOfThePromptOnly(Sound):
    """The KV of output tokens never comes."""

    class Prompt(Passing):
        limit = 0

        def prefill(self) -> int:
            token = super().prefill()
            self.limit = self.inner._computed
            return token

        def kv(self, start: int, stop: int) -> KVTensor:
            if stop > self.limit:
                raise InvalidRequestError(f"KV of {self.limit} tokens is there")
            return super().kv(start, stop)

    sequence_type = Prompt


class KvInFloat32(Sound):
    class Wide(Passing):
        def kv(self, start: int, stop: int) -> KVTensor:
            found = super().kv(start, stop)
            layout = replace(found.layout, dtype="float32")
            return KVTensor(layout, found.data.astype(np.float32))

    sequence_type = Wide


class SameKv(Sound):
    """Every prompt has the same KV."""

    def make_kv(self, states):
        return super().make_kv(np.arange(len(states), dtype=np.uint64))


class SplitChangesText(Sound):
    """The text tells how much was loaded."""

    def start(self, tokens, *, prefix, prefill_block, sampling):
        made = super().start(tokens, prefix=prefix, prefill_block=prefill_block, sampling=sampling)
        made.inner._choice += 0 if prefix is None else prefix.num_tokens
        return made


class TakesAnyToken(Sound):
    def start(self, tokens, *, prefix, prefill_block, sampling):
        tokens = [token % self.info.vocab_size for token in tokens]
        return super().start(tokens, prefix=prefix, prefill_block=prefill_block, sampling=sampling)


class BadTokensAreIndexErrors(Sound):
    def start(self, tokens, *, prefix, prefill_block, sampling):
        if any(not 0 <= token < self.info.vocab_size for token in tokens):
            raise IndexError("index out of range in self")
        return super().start(tokens, prefix=prefix, prefill_block=prefill_block, sampling=sampling)


class CutsLongPrompts(Sound):
    def start(self, tokens, *, prefix, prefill_block, sampling):
        tokens = tokens[-(self.info.max_model_len - 1) :]
        return super().start(tokens, prefix=prefix, prefill_block=prefill_block, sampling=sampling)


class IgnoresTheSeed(Sound):
    def start(self, tokens, *, prefix, prefill_block, sampling):
        sampling = replace(sampling, seed=random.SystemRandom().getrandbits(60))
        return super().start(tokens, prefix=prefix, prefill_block=prefill_block, sampling=sampling)


class NeverGreedy(Sound):
    """Declared deterministic, but greedy text is drawn too."""

    def start(self, tokens, *, prefix, prefill_block, sampling):
        sampling = replace(sampling, temperature=1.0, top_k=0, seed=None)
        return super().start(tokens, prefix=prefix, prefill_block=prefill_block, sampling=sampling)


class OneSequence(Sound):
    """All sequences of an engine share one memory."""

    class Shared(Passing):
        def prefill(self) -> int:
            token = super().prefill()
            self.engine.summary = self.inner._summary
            return token

        def decode(self) -> int:
            self.inner._summary = self.engine.summary
            token = super().decode()
            self.engine.summary = self.inner._summary
            return token

    sequence_type = Shared
    summary = 0


class ClosingOneClosesAll(Sound):
    class Closing(Passing):
        def close(self) -> None:
            for other in self.engine.open:
                other.close()
            self.engine.open.clear()

    sequence_type = Closing

    def __init__(self, options: SyntheticOptions, model: str) -> None:
        super().__init__(options, model)
        self.open: list[Any] = []

    def start(self, tokens, *, prefix, prefill_block, sampling):
        made = super().start(tokens, prefix=prefix, prefill_block=prefill_block, sampling=sampling)
        self.open.append(made.inner)
        return made


class ClosesOnce(Sound):
    class Once(Passing):
        closed = False

        def close(self) -> None:
            if self.closed:
                raise RuntimeError("already closed")
            self.closed = True
            super().close()

    sequence_type = Once


class ChangesItsTokens(Sound):
    """Works in the caller's list."""

    def start(self, tokens, *, prefix, prefill_block, sampling):
        made = super().start(tokens, prefix=prefix, prefill_block=prefill_block, sampling=sampling)
        if isinstance(tokens, list):
            made.inner._tokens = tokens
        return made


class WithInfo(Sound):
    """Says something else of itself."""

    said: Mapping[str, Any]

    @property
    def info(self) -> EngineInfo:
        return replace(super().info, **self.said)


class FingerprintOfThisObject(WithInfo):
    numbers = itertools.count()

    def __init__(self, options: SyntheticOptions, model: str) -> None:
        super().__init__(options, model)
        self.said = {"fingerprint": f"synthetic-{next(self.numbers)}"}


class FingerprintAsWritten(WithInfo):
    """The name of the model as it is."""

    said: Mapping[str, Any] = MappingProxyType({"fingerprint": "Synthetic/Model@main"})


class WrongLayout(WithInfo):
    """Counts the layers of something else."""

    said: Mapping[str, Any] = MappingProxyType({"layout": KVLayout(5, 2, 32, "bfloat16")})


class SmallVocabulary(WithInfo):
    """Its own texts have tokens that it says do not exist."""

    said: Mapping[str, Any] = MappingProxyType({"vocab_size": 100})


class LosesTheLastWord(Sound):
    def detokenize(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return super().detokenize(tokens, skip_special_tokens=skip_special_tokens).rpartition(" ")[0]


class AlwaysSpecial(Sound):
    """Begins every text with the token that begins texts, asked for or not."""

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return super().tokenize(text, add_special_tokens=True)


class ShowsSpecial(Sound):
    def detokenize(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return super().detokenize(tokens, skip_special_tokens=False)


class TokenTextIsBytes(Sound):
    def token_text(self, token: int) -> str:
        return super().token_text(token).encode()  # type: ignore[return-value]


def _make(made: Any, options: Options, model: str) -> Engine:
    engine: Engine = made(options, model)
    return engine


def _mutant(name: str, made: type[SyntheticEngine], wrong: str, *caught_by: str, errors: str = "") -> Mutant:
    record = EnginePlugin(
        name=name,
        summary=wrong,
        factory=functools.partial(_make, made),
        options=SyntheticOptions,
        capabilities=frozenset({"deterministic"}),
    )
    fixtures = {"model": "mutant"}
    return Mutant(record=record, wrong=wrong, caught_by=caught_by, errors=tuple(errors.split()), fixtures=fixtures)


SOUND: tuple[Mutant, ...] = (_mutant("sound_synthetic", Sound, "nothing"),)

MUTANTS: tuple[Mutant, ...] = (
    _mutant(
        "ignores_the_prefix",
        IgnoresThePrefix,
        "KV that is handed in is computed again",
        "test_the_prefix_handed_in_is_kept_and_not_computed_again",
        "test_what_follows_depends_on_the_prefix_handed_in",
    ),
    _mutant(
        "hands_the_prefix_back",
        HandsThePrefixBack,
        "gives the prefix back, but computes without it",
        "test_what_follows_depends_on_the_prefix_handed_in",
    ),
    _mutant(
        "uses_half_the_prefix",
        UsesHalfThePrefix,
        "a prefix of an odd length is cut",
        "test_the_prefix_handed_in_is_kept_and_not_computed_again",
    ),
    _mutant(
        "keeps_the_prefix",
        KeepsThePrefix,
        "writes into the prefix that it was handed",
        "test_the_prefix_handed_in_is_only_read",
    ),
    _mutant("kv_is_a_view", KvIsAView, "writing into what kv gave changes the text", "test_kv_is_a_copy"),
    _mutant(
        "kv_is_off", KvIsOff, "kv is that of the tokens one further", "test_kv_of_a_range_is_that_range_of_the_whole"
    ),
    _mutant(
        "kv_of_the_last",
        KvOfTheLast,
        "kv of a range in the middle is that of the end",
        "test_kv_of_a_range_is_that_range_of_the_whole",
    ),
    _mutant(
        "kv_of_the_prompt_only",
        KvOfThePromptOnly,
        "kv of output tokens never comes",
        "test_kv_is_there_when_it_is_promised_and_not_before",
        errors="InvalidRequestError",
    ),
    _mutant(
        "kv_in_float32", KvInFloat32, "kv has another element type than info says", "test_kv_has_the_layout_of_info"
    ),
    _mutant("same_kv", SameKv, "every prompt has the same KV", "test_other_tokens_have_other_kv"),
    _mutant(
        "split_changes_text",
        SplitChangesText,
        "the text tells how much was loaded",
        "test_a_loaded_prefix_gives_the_same_tokens_as_a_computed_one",
    ),
    _mutant(
        "takes_any_token",
        TakesAnyToken,
        "tokens outside of the vocabulary are folded into it",
        "test_tokens_outside_the_vocabulary_are_refused",
    ),
    _mutant(
        "bad_tokens_are_index_errors",
        BadTokensAreIndexErrors,
        "a bad token is an IndexError",
        "test_tokens_outside_the_vocabulary_are_refused",
    ),
    _mutant(
        "cuts_long_prompts",
        CutsLongPrompts,
        "a prompt that is too long is cut",
        "test_a_prompt_that_is_too_long_is_refused",
    ),
    _mutant(
        "ignores_the_seed", IgnoresTheSeed, "the same seed gives another text", "test_a_seed_makes_sampling_repeatable"
    ),
    _mutant(
        "never_greedy",
        NeverGreedy,
        "declared deterministic, but is not",
        "test_the_same_prompt_gives_the_same_tokens_and_kv",
    ),
    _mutant(
        "one_sequence",
        OneSequence,
        "sequences that are worked on in turn change each other",
        "test_sequences_do_not_disturb_each_other",
    ),
    _mutant(
        "closing_one_closes_all",
        ClosingOneClosesAll,
        "closing a sequence closes others",
        "test_sequences_do_not_disturb_each_other",
    ),
    _mutant(
        "closes_once",
        ClosesOnce,
        "closing a closed sequence fails",
        "test_a_sequence_may_be_closed_at_any_time_and_twice",
        errors="RuntimeError",
    ),
    _mutant(
        "changes_its_tokens",
        ChangesItsTokens,
        "output tokens are appended to the caller's list",
        "test_a_loaded_prefix_gives_the_same_tokens_as_a_computed_one",
        errors="InvalidRequestError",
    ),
    _mutant(
        "fingerprint_of_this_object",
        FingerprintOfThisObject,
        "two engines of one model differ in fingerprint",
        "test_two_engines_of_the_same_options_are_the_same_model",
    ),
    _mutant(
        "fingerprint_as_written",
        FingerprintAsWritten,
        "a fingerprint with other letters than may be",
        "test_the_fingerprint_can_be_part_of_a_name",
    ),
    _mutant(
        "wrong_layout",
        WrongLayout,
        "info counts another number of layers than kv has",
        "test_kv_has_the_layout_of_info",
        errors="InvalidRequestError",
    ),
    _mutant(
        "small_vocabulary",
        SmallVocabulary,
        "output tokens are outside of the vocabulary that info names",
        "test_any_text_becomes_tokens_of_the_vocabulary",
    ),
    _mutant("loses_the_last_word", LosesTheLastWord, "text loses its end", "test_words_survive_tokenizing"),
    _mutant(
        "always_special",
        AlwaysSpecial,
        "add_special_tokens=False adds them",
        "test_special_tokens_are_added_and_left_out_as_asked",
    ),
    _mutant(
        "shows_special",
        ShowsSpecial,
        "skip_special_tokens shows them",
        "test_special_tokens_are_added_and_left_out_as_asked",
    ),
    _mutant("token_text_is_bytes", TokenTextIsBytes, "token_text answers bytes", "test_every_token_has_an_entry"),
)
