"""What every engine must do: KV out, KV in, and the same text either way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache_kit.contracts.engine import Engine, EngineSequence, SamplingParams
from lmcache_kit.contracts.records import EnginePlugin, Options
from lmcache_kit.errors import InvalidRequestError
from lmcache_kit.kv.layout import KVTensor
from lmcache_kit.testing.suites.base import PluginTests, examples, made, refusal
from lmcache_kit.testing.suites.engine_prefix import EnginePrefixTests
from lmcache_kit.testing.suites.engine_runs import GREEDY, OUTPUT, Completed, bits, complete, prompts
from lmcache_kit.testing.suites.engine_server import EngineServerTests
from lmcache_kit.testing.suites.engine_text import EngineTextTests

__all__ = ["EngineTests"]


class EngineTests(EnginePrefixTests, EngineTextTests, EngineServerTests, PluginTests):
    """What :class:`lmcache_kit.contracts.Engine` promises, or the ``server`` of an engine that is one of its own.

    Optional fixture: ``model``, the name to serve; the record's ``default_model``, or any name, where it is not given.
    One engine serves all tests of a class, one after another.
    """

    record_type = EnginePlugin
    contract = Engine
    capabilities = frozenset({"deterministic"})

    @pytest.fixture
    def model(self, record: EnginePlugin) -> str:
        """Name or path of the model."""
        return record.default_model or "check"

    @pytest.fixture
    def make_engine(self, record: EnginePlugin, made_options: Options, model: str) -> Callable[[], Engine]:
        """Makes another engine of the same options; the test closes it."""
        return lambda: made(lambda: record.make(made_options, model))

    @pytest.fixture
    def subject(
        self, request: pytest.FixtureRequest, record: EnginePlugin, made_options: Options, model: str, make_engine: Any
    ) -> Any:
        if record.server is not None:
            pytest.skip(f"it cannot be used here: {record.name} is a server of its own")
        # Models are slow to make. What one test leaves behind in an engine, the next one finds.
        node = request.node.getparent(pytest.Class)
        engines = node.stash.setdefault(_ENGINES, {})
        key = (record.name, repr(made_options), model)
        if key not in engines:
            engines[key] = make_engine()
            node.addfinalizer(lambda: engines.pop(key).close())
        return engines[key]

    # -- KV -----------------------------------------------------------------------------------------------------------

    def test_kv_has_the_layout_of_info(self, subject: Engine) -> None:
        @examples(20)
        @given(tokens=prompts(subject), block=st.integers(1, 80))
        def check(tokens: list[int], block: int) -> None:
            done = complete(subject, tokens, block=block)
            assert isinstance(done.kv, KVTensor)
            assert done.kv.layout == subject.info.layout, f"kv() has the layout {done.kv.layout}"
            assert done.kv.num_tokens == len(tokens) + OUTPUT - 1
            strange = [token for token in done.output if not 0 <= token < subject.info.vocab_size]
            assert not strange, f"output tokens {strange} are outside a vocabulary of {subject.info.vocab_size}"

        check()

    def test_kv_of_a_range_is_that_range_of_the_whole(self, subject: Engine) -> None:
        @examples(25)
        @given(tokens=prompts(subject), data=st.data())
        def check(tokens: list[int], data: st.DataObject) -> None:
            with _running(subject, tokens) as sequence:
                sequence.prefill()
                sequence.decode()
                total = len(tokens) + 1
                whole = sequence.kv(0, total)
                start = data.draw(st.integers(0, total), label="start")
                stop = data.draw(st.integers(start, total), label="stop")
                part = sequence.kv(start, stop)
                assert part.num_tokens == stop - start, f"kv({start}, {stop}) has {part.num_tokens} tokens"
                assert bits(part) == bits(whole.tokens(start, stop)), f"kv({start}, {stop}) is not that part of the KV"

        check()

    def test_kv_is_a_copy(self, subject: Engine) -> None:
        tokens = [token % subject.info.vocab_size for token in range(3, 36)]
        with _running(subject, tokens) as sequence:
            sequence.prefill()
            for start, stop in ((0, len(tokens)), (0, 16), (5, 6)):
                kv = sequence.kv(start, stop)
                before = bits(kv)
                if kv.data.flags.writeable:
                    kv.data[...] = 0
                assert bits(sequence.kv(start, stop)) == before, (
                    f"writing into kv({start}, {stop}) changes the engine's"
                )
            kept = sequence.kv(0, len(tokens))
            before = bits(kept)
            sequence.decode()
            sequence.decode()
            assert bits(kept) == before, "KV that was taken changes with the next steps"
        complete(subject, tokens[::-1])
        assert bits(kept) == before, "KV that was taken changes with the next sequence"

    def test_kv_is_there_when_it_is_promised_and_not_before(self, subject: Engine) -> None:
        @examples(15)
        @given(tokens=prompts(subject))
        def check(tokens: list[int]) -> None:
            with _running(subject, tokens) as sequence:
                refusal(lambda: sequence.kv(0, len(tokens)), InvalidRequestError)
                sequence.prefill()
                computed = len(tokens)
                for _ in range(3):
                    assert sequence.kv(0, computed).num_tokens == computed
                    refusal(lambda end=computed + 1: sequence.kv(0, end), InvalidRequestError)  # type: ignore[misc]
                    sequence.decode()
                    computed += 1

        check()

    def test_other_tokens_have_other_kv(self, subject: Engine) -> None:
        @examples(20)
        @given(tokens=prompts(subject, min_size=2), data=st.data())
        def check(tokens: list[int], data: st.DataObject) -> None:
            place = data.draw(st.integers(0, len(tokens) - 1), label="place")
            others = [*tokens]
            others[place] = (tokens[place] + data.draw(st.integers(1, subject.info.vocab_size - 1))) % (
                subject.info.vocab_size
            )
            first, second = (complete(subject, each, count=1).kv for each in (tokens, others))
            assert bits(first.tokens(place, place + 1)) != bits(second.tokens(place, place + 1)), (
                f"token {tokens[place]} and token {others[place]} at place {place} have the same KV"
            )

        if subject.info.vocab_size > 1:
            check()

    @pytest.mark.capability("deterministic")
    def test_kv_depends_on_no_later_token(self, subject: Engine) -> None:
        @examples(15)
        @given(tokens=prompts(subject, min_size=2), tail=prompts(subject), block=st.integers(1, 20), data=st.data())
        def check(tokens: list[int], tail: list[int], block: int, data: st.DataObject) -> None:
            # Whole blocks, for what is computed together depends on what it is computed with, in its last bits.
            shared = data.draw(st.integers(0, (len(tokens) - 1) // block), label="shared blocks") * block
            first = complete(subject, tokens, block=block, count=1).kv.tokens(0, shared)
            second = complete(subject, [*tokens[:shared], *tail], block=block, count=1).kv.tokens(0, shared)
            assert bits(first) == bits(second), f"KV of {shared} shared tokens depends on those behind them"

        check()

    # -- tokens -------------------------------------------------------------------------------------------------------

    @pytest.mark.capability("deterministic")
    def test_the_same_prompt_gives_the_same_tokens_and_kv(self, subject: Engine) -> None:
        @examples(20)
        @given(tokens=prompts(subject), block=st.integers(1, 80), seeds=st.tuples(*[st.none() | st.integers(0, 9)] * 2))
        def check(tokens: list[int], block: int, seeds: tuple[int | None, int | None]) -> None:
            first, second = (
                complete(subject, tokens, block=block, sampling=SamplingParams(temperature=0, seed=seed))
                for seed in seeds
            )
            assert first.output == second.output, "greedy output differs the second time"
            assert bits(first.kv) == bits(second.kv), "KV differs the second time"

        check()

    @pytest.mark.capability("deterministic")
    def test_a_seed_makes_sampling_repeatable(self, subject: Engine) -> None:
        @examples(15)
        @given(
            tokens=prompts(subject),
            temperature=st.sampled_from([0.3, 1.0, 1.7]),
            top_p=st.sampled_from([1.0, 0.5]),
            top_k=st.sampled_from([0, 3]),
            seed=st.integers(0, 2**31 - 1),
        )
        def check(tokens: list[int], temperature: float, top_p: float, top_k: int, seed: int) -> None:
            sampling = SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
            first, second = (complete(subject, tokens, sampling=sampling).output for _ in range(2))
            assert first == second, f"seed {seed} gives {first} and then {second}"

        check()

    @pytest.mark.capability("deterministic")
    def test_one_candidate_is_the_greedy_one(self, subject: Engine) -> None:
        @examples(10)
        @given(tokens=prompts(subject), seed=st.none() | st.integers(0, 9))
        def check(tokens: list[int], seed: int | None) -> None:
            got = complete(subject, tokens, sampling=SamplingParams(temperature=1.0, top_k=1, seed=seed)).output
            assert got == complete(subject, tokens).output

        check()

    def test_a_long_prompt_is_answered(self, subject: Engine) -> None:
        length = min(700, subject.info.max_model_len - OUTPUT - 1)
        tokens = [(number * 31 + 7) % subject.info.vocab_size for number in range(length)]
        done = complete(subject, tokens, block=256)
        assert done.kv.num_tokens == length + OUTPUT - 1

    # -- several sequences --------------------------------------------------------------------------------------------

    @pytest.mark.capability("deterministic")
    def test_sequences_do_not_disturb_each_other(self, subject: Engine) -> None:
        @examples(12)
        @given(each=st.lists(prompts(subject), min_size=2, max_size=3), order=st.randoms(use_true_random=False))
        def check(each: list[list[int]], order: Any) -> None:
            alone = [complete(subject, tokens) for tokens in each]
            running = [_start(subject, tokens) for tokens in each]
            outputs: list[list[int]] = [[] for _ in each]
            steps = [number for number in range(len(each)) for _ in range(OUTPUT)]
            order.shuffle(steps)
            together: list[Completed | None] = [None] * len(each)
            for number in steps:
                sequence, output = running[number], outputs[number]
                output.append(sequence.decode() if output else sequence.prefill())
                if len(output) == OUTPUT:
                    together[number] = Completed(output, sequence.kv(0, len(each[number]) + OUTPUT - 1))
                    sequence.close()  # while the others go on
            for number, (got, want) in enumerate(zip(together, alone, strict=True)):
                assert got is not None
                assert got.output == want.output, f"sequence {number} gives other tokens beside other sequences"
                assert bits(got.kv) == bits(want.kv), f"sequence {number} has other KV beside other sequences"

        check()

    def test_a_sequence_may_be_closed_at_any_time_and_twice(self, subject: Engine) -> None:
        tokens = [token % subject.info.vocab_size for token in range(20)]
        other = _start(subject, tokens)
        other.prefill()
        before = bits(other.kv(0, len(tokens)))
        for steps in range(3):
            sequence = _start(subject, tokens)
            for step in range(steps):
                _ = sequence.decode() if step else sequence.prefill()
            sequence.close()
            sequence.close()
        assert bits(other.kv(0, len(tokens))) == before, "closing one sequence changes another"
        other.decode()
        other.close()

    def test_another_thread_may_use_it(self, subject: Engine, record: EnginePlugin) -> None:
        tokens = [(token * 3) % subject.info.vocab_size for token in range(40)]
        here = complete(subject, tokens)
        with ThreadPoolExecutor(1) as pool:
            there = pool.submit(complete, subject, tokens).result()
        assert there.kv.num_tokens == here.kv.num_tokens
        if "deterministic" in record.capabilities:
            assert there.output == here.output, "declared deterministic, but another thread gets other tokens"
            assert bits(there.kv) == bits(here.kv), "declared deterministic, but another thread gets other KV"

    # -- refusals -----------------------------------------------------------------------------------------------------

    def test_tokens_outside_the_vocabulary_are_refused(self, subject: Engine) -> None:
        size = subject.info.vocab_size
        for strange in (-1, size, 2**31, -(2**40), 2**70):
            for tokens in ([strange], [0, strange], [0] * 20 + [strange]):
                refusal(lambda tokens=tokens: _start(subject, tokens), InvalidRequestError)  # type: ignore[misc]
        complete(subject, [0, size - 1])

    def test_a_prompt_that_is_too_long_is_refused(self, subject: Engine) -> None:
        longest = subject.info.max_model_len
        for length in (longest + 1, longest + 1000):
            refusal(lambda length=length: _start(subject, [0] * length), InvalidRequestError)  # type: ignore[misc]
        complete(subject, [0])


_ENGINES: pytest.StashKey[dict[Any, Engine]] = pytest.StashKey()


def _start(engine: Engine, tokens: list[int]) -> EngineSequence:
    return engine.start(tokens, prefix=None, prefill_block=16, sampling=GREEDY)


@contextmanager
def _running(engine: Engine, tokens: list[int]) -> Iterator[EngineSequence]:
    sequence = _start(engine, tokens)
    try:
        yield sequence
    finally:
        sequence.close()
