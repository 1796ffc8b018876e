"""Made-up requests: the same for the same seed, in order of time, and sharing exactly what their pieces say."""

from __future__ import annotations

import random
from itertools import islice, pairwise
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcache_kit.contracts.trace import TraceRecord
from lmcache_kit.traffic.arrivals import arrival_times
from lmcache_kit.traffic.contents import BlockChain
from lmcache_kit.traffic.draws import Draws
from lmcache_kit.traffic.prompt import BlockPrompt
from lmcache_kit.traffic.source import made_up
from lmcache_kit.traffic.specs import Arrivals, Contents

LENGTHS = (
    st.integers(1, 60)
    | st.tuples(st.integers(1, 30), st.integers(0, 30)).map(
        lambda pair: {"kind": "uniform", "at_least": pair[0], "at_most": pair[0] + pair[1]}
    )
    | st.tuples(st.floats(1, 50), st.floats(0.01, 3)).map(
        lambda pair: {"kind": "lognormal", "mean": pair[0], "cv": pair[1], "at_most": 80}
    )
)
SIZES = st.integers(1, 20)
ZIPF = st.floats(0, 3)
ARRIVALS = st.one_of(
    st.fixed_dictionaries({"kind": st.just("poisson"), "rate": st.floats(0.01, 1000)}),
    st.fixed_dictionaries({"kind": st.just("gamma"), "rate": st.floats(0.01, 1000), "cv": st.floats(0, 20)}),
    st.fixed_dictionaries({"kind": st.just("bursts"), "size": st.integers(1, 5), "every": st.floats(0.001, 10)}),
    st.fixed_dictionaries(
        {"kind": st.just("bursts"), "size": st.integers(1, 5), "every": st.floats(1, 10), "within": st.floats(0, 1)}
    ),
    st.fixed_dictionaries({"kind": st.just("closed"), "concurrency": st.integers(1, 5)}),
)
COMMON: dict[str, Any] = {"output_tokens": LENGTHS, "block_size": SIZES}
CONTENTS = st.one_of(
    st.fixed_dictionaries({"kind": st.just("independent"), "prompt_tokens": LENGTHS, **COMMON}),
    st.fixed_dictionaries(
        {
            "kind": st.just("shared_prefix"),
            "groups": st.integers(1, 4),
            "prefix_tokens": LENGTHS,
            "suffix_tokens": LENGTHS,
            "zipf": ZIPF,
            **COMMON,
        }
    ),
    st.fixed_dictionaries(
        {
            "kind": st.just("multi_turn"),
            "turns": st.integers(1, 4),
            "system_tokens": st.integers(0, 30),
            "user_tokens": LENGTHS,
            **COMMON,
        }
    ),
    st.fixed_dictionaries(
        {
            "kind": st.just("rag"),
            "documents": st.integers(1, 5),
            "document_tokens": LENGTHS,
            "per_request": st.integers(1, 6),
            "order": st.sampled_from(["drawn", "sorted"]),
            "system_tokens": st.integers(0, 30),
            "question_tokens": LENGTHS,
            "zipf": ZIPF,
            **COMMON,
        }
    ),
)


def records(contents: dict[str, Any], arrivals: dict[str, Any], requests: int, seed: int) -> list[TraceRecord]:
    source = made_up(
        msgspec.convert(contents, Contents),
        msgspec.convert(arrivals, Arrivals),
        requests,
        Draws(random.Random(seed)),
    )
    made: list[TraceRecord] = []
    for record in source.records:
        made.append(record)
        while source.follow is not None and (later := source.follow(made[-1])) is not None:
            made.append(later[1])
    return made


@given(CONTENTS, ARRIVALS, st.integers(1, 12), st.integers(0, 2**32))
@settings(deadline=None)
def test_same_seed_same_requests(contents: dict[str, Any], arrivals: dict[str, Any], requests: int, seed: int) -> None:
    made = records(contents, arrivals, requests, seed)
    assert made == records(contents, arrivals, requests, seed)
    assert len(made) == requests
    size = contents["block_size"]
    for record in made:
        assert record.input_tokens == size * len(record.block_ids) + record.tail_tokens
        assert 0 <= record.tail_tokens < size
        assert (record.tail_id is None) == (record.tail_tokens == 0)
        assert record.input_tokens >= 1
        assert record.output_tokens >= 1
    starts = [record.arrival for record in made]
    assert starts == sorted(starts)
    assert starts[0] == 0.0


@given(ARRIVALS, st.integers(0, 2**32))
def test_arrivals_never_fall(arrivals: dict[str, Any], seed: int) -> None:
    times = list(islice(arrival_times(msgspec.convert(arrivals, Arrivals), Draws(random.Random(seed))), 60))
    assert times[0] == 0
    assert all(later >= earlier for earlier, later in pairwise(times))


PIECES = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 12)), min_size=1, max_size=5)


@given(PIECES, PIECES, st.integers(1, 6))
def test_prompts_share_the_blocks_in_which_their_pieces_agree(
    one: list[tuple[int, int]], two: list[tuple[int, int]], size: int
) -> None:
    lengths = {0: 5, 1: 7, 2: 12}

    def chain(pieces: list[tuple[int, int]]) -> tuple[BlockChain, list[tuple[int, ...]]]:
        made = BlockChain(size, 99)
        tokens: list[tuple[int, ...]] = []
        names: tuple[int, ...] = ()
        for name, _ in pieces:
            made.add(name, lengths[name])
            names = (*names, name)
            # A token is what it is by all pieces up to its own, and by its place.
            tokens += [(*names, len(tokens) + place) for place in range(lengths[name])]
        return made, tokens

    (mine, my_tokens), (its, its_tokens) = chain(one), chain(two)
    assert mine.tokens == len(my_tokens)
    for place, (my_id, its_id) in enumerate(zip(mine.ids, its.ids, strict=False)):
        end = (place + 1) * size - 1
        assert (my_id == its_id) == (my_tokens[end] == its_tokens[end])
    assert len(set(mine.ids)) == len(mine.ids)
    prompts = [BlockPrompt(each.record(0.0, 1), size, unique=0) for each in (mine, its)]
    whole = next(
        (place for place, (a, b) in enumerate(zip(mine.ids, its.ids, strict=False)) if a != b),
        min(len(mine.ids), len(its.ids)),
    )
    assert prompts[0][: whole * size] == prompts[1][: whole * size]
