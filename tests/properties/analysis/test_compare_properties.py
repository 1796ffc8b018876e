"""compare against an oracle that holds everything in memory and knows nothing of blocks or digests."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from lmcache_kit.analysis import compare_runs

Line = dict[str, Any]

decisions = st.builds(
    lambda event, instance, key: {"event": f"cache_{event}", "instance": instance, "location": "cpu", "key": key},
    st.sampled_from(["hit", "admit", "evict"]),
    st.sampled_from("ab"),
    st.sampled_from("wxyz"),
)
# Long enough for several blocks of digests now and then: a short pattern, repeated.
logs = st.builds(lambda lines, times: lines * times, st.lists(decisions, max_size=12), st.sampled_from([1, 1, 1, 60]))


def oracle(lines: list[Line]) -> dict[str, list[tuple[str, int]]]:
    """Per instance the decisions, chunks named by the order in which they appeared there."""
    found: dict[str, list[tuple[str, int]]] = defaultdict(list)
    seen: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        known = seen[line["instance"]]
        if line["key"] not in known:
            known.append(line["key"])
        found[line["instance"]].append((line["event"], known.index(line["key"])))
    return found


def write(folder: Path, lines: list[Line]) -> Path:
    folder.mkdir()
    facts = {"schema_version": 1, "scenario": "x", "clock": "wall", "seed": 1, "status": "passed", "results": []}
    (folder / "report.json").write_text(json.dumps(facts))
    (folder / "scenario.yaml").write_text("name: x\n")
    request = {"event": "request", "position": 0, "workload": "w"}
    texts = [json.dumps({"time": float(at), **line}) for at, line in enumerate([request, *lines])]
    (folder / "events.jsonl").write_text("".join(f"{text}\n" for text in texts))
    return folder


@settings(max_examples=150, deadline=None)
@given(a=logs, b=logs, same=st.booleans(), data=st.data())
def test_the_first_difference_is_the_oracle_s(a: list[Line], b: list[Line], same: bool, data: st.DataObject) -> None:
    if same and a:
        # Two unrelated logs part at once; this one parts from a where it says.
        at = data.draw(st.integers(0, len(a) - 1))
        b = [*a[:at], data.draw(decisions), *a[at + 1 :]]
    with tempfile.TemporaryDirectory() as folder:
        facts = compare_runs(write(Path(folder, "a"), a), write(Path(folder, "b"), b))
    mine, its = oracle(a), oracle(b)
    for sequence in facts["sequences"]:
        name = sequence["instance"]
        pairs = enumerate(zip_longest(mine.get(name, []), its.get(name, [])))
        first = next((index for index, (one, other) in pairs if one != other), None)
        assert sequence["first_difference"] == first
        assert sequence["equal"] == (first is None)
    assert {each["instance"] for each in facts["sequences"]} == set(mine) | set(its)
    assert (facts["divergence"] is None) == (mine == its)


@settings(max_examples=100, deadline=None)
@given(lines=logs, names=st.permutations("wxyz"), data=st.data())
def test_renamed_chunks_and_another_interleaving_are_equal(
    lines: list[Line], names: list[str], data: st.DataObject
) -> None:
    table = dict(zip("wxyz", names, strict=True))
    other = [line | {"key": table[line["key"]]} for line in lines]
    if data.draw(st.booleans()):
        other.sort(key=lambda line: line["instance"])
    with tempfile.TemporaryDirectory() as folder:
        assert compare_runs(write(Path(folder, "a"), lines), write(Path(folder, "b"), other))["equal"]


@settings(max_examples=100, deadline=None)
@given(lines=st.lists(decisions, min_size=2, max_size=30))
def test_two_chunks_made_one_are_not_equal(lines: list[Line]) -> None:
    """Whether the two were told apart within an instance or only across instances."""
    used = sorted({line["key"] for line in lines})
    if len(used) < 2:
        return
    other = [line | {"key": used[0] if line["key"] == used[1] else line["key"]} for line in lines]
    with tempfile.TemporaryDirectory() as folder:
        facts = compare_runs(write(Path(folder, "a"), lines), write(Path(folder, "b"), other))
    # Only where both were used: one that takes the place of the other everywhere is just a name.
    assert not facts["equal"]
