"""The sequences of cache decisions in a run, condensed so that two runs of any size can be compared.

A sequence is what one instance (or one tier) decided, in its order; the order between instances is a matter of timing.
Chunks are numbered by their first appearance in the sequence, as two runs may name the same chunk differently.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from lmcache_kit.analysis.events import Event

__all__ = ["BLOCK", "Per", "Sequence", "SequenceName", "Sequences"]

BLOCK = 256
"""Decisions that one digest stands for: where two digests differ, only that many are read again."""

SequenceName = tuple[str, str]
"""Instance and location; the location is empty for the sequence of a whole instance."""
Decision = tuple[str, str | None, str | None, int, int | None]
"""Event, location, cause, number of the chunk, and its bytes where they count."""


class Per(StrEnum):
    """What has a sequence of its own."""

    INSTANCE = "instance"
    TIER = "tier"


@dataclass(slots=True)
class Sequence:
    """One sequence: a digest for every 256 decisions, and the number of each chunk.

    Chunks are held as the hash of their key: 64 bits, so that millions of them fit into memory.
    """

    length: int = 0
    digests: list[bytes] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)
    _open: list[Decision] = field(default_factory=list)

    def add(self, event: Event, *, with_bytes: bool) -> None:
        """Append one decision."""
        self._open.append(self.decision(event, with_bytes=with_bytes))
        self.length += 1
        if len(self._open) == BLOCK:
            self._close()

    def end(self) -> None:
        """Digest what is left."""
        if self._open:
            self._close()

    def decision(self, event: Event, *, with_bytes: bool) -> Decision:
        """What is compared of an event; the same whenever it is asked for."""
        number = self.numbers.setdefault(hash(event.key), len(self.numbers))
        return event.event, event.location, event.cause, number, event.bytes if with_bytes else None

    def _close(self) -> None:
        self.digests.append(hashlib.blake2b(msgspec.msgpack.encode(self._open), digest_size=16).digest())
        self._open = []


class Sequences:
    """All sequences of one run, filled event by event.

    Args:
        per: what has a sequence of its own.
        with_bytes: whether the size of a chunk is part of a decision.
    """

    def __init__(self, *, per: Per, with_bytes: bool) -> None:
        self._per = per
        self._with_bytes = with_bytes
        self.counts: Counter[str] = Counter()
        self.by_name: dict[SequenceName, Sequence] = {}

    def add(self, event: Event) -> None:
        """Take in any event; decisions go to their sequence, all are counted."""
        self.counts[event.event] += 1
        if event.is_decision:
            name = self.name_of(event)
            sequence = self.by_name.get(name)
            if sequence is None:
                sequence = self.by_name[name] = Sequence()
            sequence.add(event, with_bytes=self._with_bytes)

    def end(self) -> None:
        """No more events come."""
        for sequence in self.by_name.values():
            sequence.end()

    def name_of(self, event: Event) -> SequenceName:
        """The sequence that a decision belongs to."""
        return event.instance or "", (event.location or "") if self._per is Per.TIER else ""

    def decision(self, event: Event) -> Decision:
        """What is compared of an event that was taken in before."""
        return self.by_name[self.name_of(event)].decision(event, with_bytes=self._with_bytes)
