from __future__ import annotations

import random
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lmcache_kit.contracts.trace import TraceRecord
from lmcache_kit.traffic.arrivals import arrival_times
from lmcache_kit.traffic.draws import Draws
from lmcache_kit.traffic.prompt import BlockPrompt
from lmcache_kit.traffic.source import Source, made_up, recorded
from lmcache_kit.traffic.specs import Arrivals, Contents

POISSON = {"kind": "poisson", "rate": 10}


def draws(seed: int = 1) -> Draws:
    return Draws(random.Random(seed))


def source(contents: dict[str, Any], requests: int, arrivals: dict[str, Any] = POISSON, **more: Any) -> Source:
    spec = msgspec.convert(contents, Contents)
    return made_up(spec, msgspec.convert(arrivals, Arrivals), requests, more.pop("draws", None) or draws(), **more)


def prompts(source: Source) -> list[list[int]]:
    return [list(source.prompt(record, place)) for place, record in enumerate(source.records)]


def shared(one: list[int], two: list[int]) -> int:
    """Tokens that two prompts begin alike with."""
    same = 0
    for mine, its in zip(one, two, strict=False):
        if mine != its:
            break
        same += 1
    return same


def times(spec: dict[str, Any], count: int) -> list[float]:
    return list(islice(arrival_times(msgspec.convert(spec, Arrivals), draws()), count))


def test_arrivals_of_each_kind() -> None:
    assert times({"kind": "gamma", "rate": 4, "cv": 0}, 4) == [0, 0.25, 0.5, 0.75]
    assert times({"kind": "bursts", "size": 2, "every": 3}, 5) == [0, 0, 3, 3, 6]
    assert times({"kind": "bursts", "size": 4, "every": 3, "within": 1}, 6) == [0, 0.25, 0.5, 0.75, 3, 3.25]
    assert times({"kind": "bursts", "size": 2, "every": 3, "within": 3}, 4) == [0, 1.5, 3, 4.5]
    with pytest.raises(msgspec.ValidationError, match="does not end before the next one"):
        times({"kind": "bursts", "size": 2, "every": 3, "within": 3.1}, 4)
    assert times({"kind": "closed", "concurrency": 4}, 3) == [0, 0, 0]
    assert times({"kind": "poisson", "rate": 10}, 10_000)[-1] == pytest.approx(1000, rel=0.05)
    assert times({"kind": "gamma", "rate": 10, "cv": 3}, 20_000)[-1] == pytest.approx(2000, rel=0.1)
    assert all(round(time * 1e9) / 1e9 == time for time in times(POISSON, 1000)), "whole nanoseconds"


def test_a_steady_beat_does_not_drift() -> None:
    assert times({"kind": "gamma", "rate": 10, "cv": 0}, 10_001)[-1] == 1000.0


def test_groups_share_their_prefix_in_whole_blocks() -> None:
    contents = {"kind": "shared_prefix", "groups": 3, "prefix_tokens": 50, "suffix_tokens": 30, "block_size": 16}
    made = source(contents, 40)
    records = list(made.records)
    groups: dict[tuple[int, ...], list[list[int]]] = {}
    for place, record in enumerate(records):
        groups.setdefault(record.block_ids[:3], []).append(list(made.prompt(record, place)))
    assert len(groups) == 3
    for members in groups.values():
        assert {shared(one, two) // 16 for one in members for two in members if one is not two} == {3}
    heads = [members[0] for members in groups.values()]
    assert {shared(one, two) for one in heads for two in heads if one is not two} <= {0, 1}, "up to chance"
    assert {record.input_tokens for record in records} == {80}


def test_independent_prompts_share_nothing() -> None:
    contents = {"kind": "independent", "prompt_tokens": {"kind": "uniform", "at_least": 1, "at_most": 200}}
    records = list(source(contents, 300).records)
    ids = [
        each for record in records for each in (*record.block_ids, *([record.tail_id] if record.tail_tokens else []))
    ]
    assert len(set(ids)) == len(ids)
    assert all(record.input_tokens == 64 * len(record.block_ids) + record.tail_tokens for record in records)


def test_documents_count_in_their_order() -> None:
    contents = {
        "kind": "rag",
        "documents": 6,
        "document_tokens": 32,
        "per_request": 2,
        "system_tokens": 16,
        "question_tokens": 5,
        "block_size": 16,
        "zipf": 0.5,
    }
    for order in ("drawn", "sorted"):
        made = source({**contents, "order": order}, 200)
        seen = prompts(made)
        assert {len(prompt) for prompt in seen} == {16 + 64 + 5}
        lengths = {shared(one, seen[0]) // 16 for one in seen[1:]}
        assert lengths == {1, 3, 5}, "the system prompt, then one document, then both"
    pairs = {record.block_ids for record in source({**contents, "order": "sorted"}, 200).records}
    assert len(pairs) <= 15, "of 6 documents there are 15 pairs"
    pairs = {record.block_ids for record in source(contents, 200).records}
    assert 15 < len(pairs) <= 30


def test_a_prompt_holds_a_document_once() -> None:
    contents = {"kind": "rag", "documents": 4, "per_request": 9, "document_tokens": 64, "question_tokens": 1}
    assert {record.input_tokens for record in source(contents, 20).records} == {4 * 64 + 1}


def turns(made: Source) -> dict[str, list[tuple[float, TraceRecord]]]:
    """Every conversation, to its end."""
    found: dict[str, list[tuple[float, TraceRecord]]] = {}
    assert made.follow is not None
    for record in made.records:
        talk = found.setdefault(str(record.session), [(0.0, record)])
        while (later := made.follow(talk[-1][1])) is not None:
            talk.append(later)
    return found


def test_a_turn_contains_what_was_said() -> None:
    contents = {
        "kind": "multi_turn",
        "turns": {"kind": "uniform", "at_least": 2, "at_most": 5},
        "system_tokens": 20,
        "user_tokens": {"kind": "uniform", "at_least": 1, "at_most": 40},
        "output_tokens": {"kind": "uniform", "at_least": 1, "at_most": 40},
        "block_size": 16,
        "think_seconds": 2.0,
    }
    made = source(contents, 300)
    talks = turns(made)
    assert sum(map(len, talks.values())) == 300
    first = [list(made.prompt(talk[0][1], 0)) for talk in talks.values()]
    assert {shared(one, first[0]) // 16 for one in first[1:]} == {1}, "only the system prompt's whole block"
    thinking = []
    for talk in talks.values():
        for (_, before), (think, after) in pairwise(talk):
            thinking.append(think)
            said = list(made.prompt(before, 1))
            assert list(made.prompt(after, 2))[: len(said)] == said
            assert after.input_tokens > before.input_tokens + before.output_tokens
            assert after.session == before.session
    assert sum(thinking) / len(thinking) == pytest.approx(2.0, rel=0.2)


def test_turns_do_not_depend_on_the_order_of_answers() -> None:
    contents = {"kind": "multi_turn", "turns": 3, "user_tokens": {"kind": "lognormal", "mean": 50}}
    one = turns(source(contents, 30))
    made = source(contents, 30)
    assert made.follow is not None
    first = list(made.records)
    two: dict[str, list[tuple[float, TraceRecord]]] = {str(record.session): [(0.0, record)] for record in first}
    pending = first[::-1]
    while pending:
        record = pending.pop(0)
        later = made.follow(record)
        if later is not None:
            two[str(record.session)].append(later)
            pending.append(later[1])
    assert one == two


def test_conversations_are_cut_short() -> None:
    contents = {"kind": "multi_turn", "turns": 10, "user_tokens": 10, "output_tokens": 10}
    talks = turns(source(contents, 25))
    assert [len(talk) for talk in talks.values()] == [10, 10, 5]
    talks = turns(source({**contents, "max_prompt_tokens": 50}, 25))
    assert max(record.input_tokens for talk in talks.values() for _, record in talk) == 50
    talks = turns(source({**contents, "max_prompt_tokens": 3}, 4))
    assert [len(talk) for talk in talks.values()] == [1, 1, 1, 1]


def test_a_cap_on_outputs_is_what_was_said() -> None:
    contents = {"kind": "multi_turn", "turns": 2, "user_tokens": 10, "output_tokens": 100}
    talks = turns(source(contents, 2, cap=7))
    assert [record.input_tokens for talk in talks.values() for _, record in talk] == [10, 27]


def test_two_sources_share_nothing() -> None:
    contents = {"kind": "shared_prefix", "groups": 1}
    own = draws()
    one, two = source(contents, 5, draws=own), source(contents, 5, draws=own)
    assert not {each for record in one.records for each in record.block_ids} & {
        each for record in two.records for each in record.block_ids
    }


def test_tails_without_ids_are_apart_between_sources(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.0000000,40,3\n2023-11-16 18:17:04.0000000,40,3\n"
    )
    own = draws()
    seen = [prompt for _ in range(2) for prompt in prompts(recorded(tmp_path / "t.csv", "azure", own))]
    assert all(shared(one, two) < 5 for one in seen for two in seen if one is not two)


def test_records_are_made_as_they_are_asked_for() -> None:
    made = source({"kind": "independent"}, 10**12)
    assert len(list(islice(made.records, 3))) == 3


def test_a_tail_longer_than_a_block() -> None:
    """LMCache's logs may cover the first part of a prompt only."""
    record = TraceRecord(arrival=0, input_tokens=50, output_tokens=1, block_ids=(7,), tail_tokens=34)
    one, two = BlockPrompt(record, 16, unique=1), BlockPrompt(record, 16, unique=2)
    assert len(list(one)) == 50
    assert shared(list(one), list(two)) in (16, 17)
    chunks = one.chunks(8, partial=True)
    assert [stop for stop, _ in chunks] == [8, 16, 24, 32, 40, 48, 50]
    assert len({identity for _, identity in chunks}) == 7
    assert [a == b for a, b in zip(chunks, two.chunks(8, partial=True), strict=True)] == [True] * 2 + [False] * 5
