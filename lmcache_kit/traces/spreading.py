"""Requests that share a time stamp because the recording was coarse, spread over the time up to the next one."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from itertools import groupby, pairwise

from lmcache_kit.contracts.trace import TraceRecord

__all__ = ["Spreading", "spread_bursts"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Spreading:
    """What was done to a trace's arrivals, for the report.

    Args:
        bursts: time stamps that several requests shared.
        largest_burst: most requests of one time stamp.
        moved: requests that arrive later than recorded.
        longest_shift_seconds: the most that one of them was moved.
    """

    bursts: int
    largest_burst: int
    moved: int
    longest_shift_seconds: float


def spread_bursts(
    records: Sequence[TraceRecord], rng: random.Random, *, longest_gap: float | None = None
) -> tuple[list[TraceRecord], Spreading]:
    """Spread each burst over the gap up to the next time stamp.

    The first request of a burst stays where it is; the others move to times drawn evenly from the gap, in their order.
    So the order of all requests stays, and so does the time of each burst's first. The last burst, after which nothing
    comes, is spread over the gap before it.

    Args:
        records: in order of arrival, as ``load_trace`` gives them.
        rng: where the times come from.
        longest_gap: seconds over which a burst is spread at most; None for no bound.

    Raises ValueError when the records are not in order.
    """
    bursts = [(stamp, list(group)) for stamp, group in groupby(records, key=lambda record: record.arrival)]
    if any(later[0] < earlier[0] for earlier, later in pairwise(bursts)):
        raise ValueError("records are not in order of arrival")
    made: list[TraceRecord] = []
    shared = largest = moved = 0
    longest = gap = 0.0
    for position, (stamp, burst) in enumerate(bursts):
        if position + 1 < len(bursts):
            gap = bursts[position + 1][0] - stamp
        width = gap if longest_gap is None else min(gap, longest_gap)
        made.append(burst[0])
        largest = max(largest, len(burst))
        if len(burst) == 1:
            continue
        shared += 1
        shifts = sorted(rng.random() * width for _ in burst[1:])
        for record, shift in zip(burst[1:], shifts, strict=True):
            arrival = stamp + shift
            made.append(dataclasses.replace(record, arrival=arrival))
            moved += arrival != stamp
            longest = max(longest, arrival - stamp)
    return made, Spreading(bursts=shared, largest_burst=largest, moved=moved, longest_shift_seconds=longest)
