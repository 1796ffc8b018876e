"""Where two runs part: the first decision of each sequence that differs, with what stands around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lmcache_kit.analysis.events import Event, read_events
from lmcache_kit.analysis.sequences import BLOCK, Sequence, SequenceName, Sequences

__all__ = ["CONTEXT", "Divergence", "find_divergences", "first_renamed"]

CONTEXT = 3
"""Decisions shown before and after the one that differs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The first difference of one sequence.

    Args:
        name: the sequence.
        index: position of the first decision that differs, from 0.
        before: decisions ahead of it, equal in both runs.
        a: the decision of the first run and those after it; empty where its sequence has ended.
        b: the same of the second run.
    """

    name: SequenceName
    index: int
    before: list[dict[str, Any]]
    a: list[dict[str, Any]]
    b: list[dict[str, Any]]

    @property
    def time(self) -> float:
        """When the first of the two runs did what the other did not, in seconds."""
        return min(float(side[0]["time"]) for side in (self.a, self.b) if side)


def find_divergences(a: Sequences, b: Sequences, files: tuple[Path, Path]) -> list[Divergence]:
    """One for each sequence that differs, the earliest first. Reads each file once more if there is any."""
    starts = {}
    for name in sorted(set(a.by_name) | set(b.by_name)):
        block = _first_block(a.by_name.get(name, Sequence()), b.by_name.get(name, Sequence()))
        if block is not None:
            starts[name] = block * BLOCK
    if not starts:
        return []
    windows_a, windows_b = _windows(a, files[0], starts), _windows(b, files[1], starts)
    found = [_divergence(name, start, windows_a[name], windows_b[name]) for name, start in starts.items()]
    return sorted(found, key=lambda each: (each.time, each.name))


def first_renamed(a: Sequences, b: Sequences) -> SequenceName | None:
    """The first sequence in which a chunk that another sequence has too is another chunk in the other run.

    Numbers tell chunks apart within a sequence only. Of runs whose sequences are equal, chunk by chunk the key in one
    must stand for the same key in the other everywhere.
    """
    there: dict[int, int] = {}
    back: dict[int, int] = {}
    for name in sorted(a.by_name):
        # Dictionaries keep the order of insertion, which is the order of the numbers.
        for mine, its in zip(a.by_name[name].numbers, b.by_name[name].numbers, strict=True):
            if there.setdefault(mine, its) != its or back.setdefault(its, mine) != mine:
                return name
    return None


def _first_block(a: Sequence, b: Sequence) -> int | None:
    for index, (mine, its) in enumerate(zip_longest(a.digests, b.digests)):
        if mine != its:
            return index
    return None


_Window = list[tuple[int, Event, Any]]


def _windows(run: Sequences, file: Path, starts: Mapping[SequenceName, int]) -> dict[SequenceName, _Window]:
    """Of each sequence, the decisions of the block at ``start`` and some around it, with their positions."""
    windows: dict[SequenceName, _Window] = {name: [] for name in starts}
    positions = dict.fromkeys(starts, 0)
    for event in read_events(file):
        if not event.is_decision:
            continue
        name = run.name_of(event)
        if name not in starts:
            continue
        position = positions[name]
        positions[name] += 1
        if -CONTEXT <= position - starts[name] <= BLOCK + CONTEXT:
            windows[name].append((position, event, run.decision(event)))
    return windows


def _divergence(name: SequenceName, start: int, a: _Window, b: _Window) -> Divergence:
    index = start
    for mine, its in zip_longest(a, b):
        if mine is None or its is None or mine[2] != its[2]:
            index = (mine or its)[0]
            break
    return Divergence(
        name=name,
        index=index,
        before=[_shown(each) for each in a if index - CONTEXT <= each[0] < index],
        a=[_shown(each) for each in a if index <= each[0] <= index + CONTEXT],
        b=[_shown(each) for each in b if index <= each[0] <= index + CONTEXT],
    )


def _shown(entry: tuple[int, Event, Any]) -> dict[str, Any]:
    position, event, decision = entry
    return {
        "index": position,
        "time": event.time,
        "event": event.event,
        "location": event.location,
        "cause": event.cause,
        "chunk": decision[3],
        "key": event.key,
        "bytes": event.bytes,
    }
