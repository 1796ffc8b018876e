"""Trace readers: files of requests in somebody's format, as normalised records.

A reader is called from one thread, before the first request is sent, so it may take its time. Times are in seconds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

__all__ = ["TraceFormat", "TraceReader", "TraceRecord"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFormat:
    """What a format means by its block ids.

    Args:
        block_size: tokens per id; 0 when the format has no ids.
        tail: ``ceil`` when a partial last block has an id, ``floor`` when it has none.
        id_scope: whether equal ids in different sessions mean equal tokens; ids that do not are numbered anew when
            the trace is loaded, session by session.
        chained: whether an id of the file stands for all tokens before it too; ids of formats that are not chained
            are chained by the reader.
        time_unit: seconds per unit of the file's time stamps.
    """

    block_size: int
    tail: Literal["ceil", "floor"]
    id_scope: Literal["global", "session"]
    chained: bool
    time_unit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRecord:
    """One request.

    Args:
        arrival: seconds since the trace's first request.
        input_tokens: prompt length.
        output_tokens: completion length.
        block_ids: chained ids of the prompt's full blocks; fewer where the format knows only how a prompt begins.
        tail_tokens: prompt tokens after the last of them: all where the format has no ids.
        session: conversation it belongs to, or None.
        request_id: what the format calls the request, or None; a later record of the same name is a retry of it.
        tail_id: chained id of the partial last block, in formats that have one (``tail="ceil"``); two prompts with
            equal ``block_ids`` and ``tail_id`` share their tail too.
    """

    arrival: float
    input_tokens: int
    output_tokens: int
    block_ids: tuple[int, ...]
    tail_tokens: int
    session: str | None = None
    request_id: str | None = None
    tail_id: int | None = None


class TraceReader(ABC):
    """Reads one format; ``format`` is what it means unless a file says otherwise."""

    format: ClassVar[TraceFormat]

    @abstractmethod
    def read(self, path: Path) -> Iterator[TraceRecord]:
        """Records in the order of the file. Raises InvalidRequestError naming file and line of a bad row."""

    def format_read(self) -> TraceFormat:
        """The format of what was read last. Override it where files say themselves what an id stands for."""
        return self.format
