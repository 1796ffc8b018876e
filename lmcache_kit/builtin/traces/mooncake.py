"""Traces in the format of Mooncake (FAST'25): one JSON object per line.

.. code-block:: json

    {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 2353, 2354]}

``timestamp`` is in milliseconds. Each id stands for 512 tokens and, being chained, for all tokens before them; the
number of ids is ``input_length / 512`` rounded up, so the last id may stand for a partial block.

Rows may say more, and those that ``lmcache-kit trace convert`` made of other formats do: ``block_size``, ``tail``
(``floor`` where the partial block has no id), ``session_id`` and ``request_id``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import msgspec

from lmcache_kit.builtin.traces.fields import Count, Id, Length, Time
from lmcache_kit.builtin.traces.json_lines import json_lines
from lmcache_kit.contracts.trace import TraceFormat, TraceReader, TraceRecord
from lmcache_kit.errors import InvalidRequestError

__all__ = ["MooncakeReader", "MooncakeRow"]

BLOCK_SIZE = 512


class MooncakeRow(msgspec.Struct, omit_defaults=True):
    """One line. ``block_size`` 0 says that nothing is known of prefixes."""

    timestamp: Time
    input_length: Length
    output_length: Count
    hash_ids: list[Id]
    block_size: Count = BLOCK_SIZE
    tail: Literal["ceil", "floor"] = "ceil"
    session_id: str | None = None
    request_id: str | None = None


class MooncakeReader(TraceReader):
    """See the module's description. Arrivals count from the first row, wherever later rows stand in time."""

    format: ClassVar[TraceFormat] = TraceFormat(
        block_size=BLOCK_SIZE, tail="ceil", id_scope="global", chained=True, time_unit=1e-3
    )

    def __init__(self) -> None:
        self._read = self.format

    def format_read(self) -> TraceFormat:
        return self._read

    def read(self, path: Path) -> Iterator[TraceRecord]:
        self._read = self.format
        first: float | None = None
        for where, row in json_lines(path, MooncakeRow, hint="one JSON object per line, as in the Mooncake traces"):
            if first is None:
                first = row.timestamp
                self._read = dataclasses.replace(self.format, block_size=row.block_size, tail=row.tail)
            elif row.tail == "ceil" and self._read.tail == "floor":
                self._read = dataclasses.replace(self._read, tail="ceil")
            if row.block_size != self._read.block_size:
                raise InvalidRequestError(
                    f"{where}: blocks of {row.block_size} tokens, rows before have {self._read.block_size}"
                )
            yield _record(row, first, where)


def _record(row: MooncakeRow, first: float, where: str) -> TraceRecord:
    size = row.block_size
    full, tail = divmod(row.input_length, size) if size else (0, 0)
    with_id = bool(tail and row.tail == "ceil")
    wanted = full + with_id
    # Without ids for partial blocks, a format may leave out those of full ones too.
    if len(row.hash_ids) > wanted or (len(row.hash_ids) < wanted and row.tail == "ceil"):
        raise InvalidRequestError(
            f"{where}: {len(row.hash_ids)} hash_ids for {row.input_length} tokens, want {wanted} of {size} tokens"
        )
    named = min(full, len(row.hash_ids))
    return TraceRecord(
        # Divided, not multiplied by a thousandth: whole milliseconds come out as the nearest numbers of seconds.
        arrival=(row.timestamp - first) / 1000,
        input_tokens=row.input_length,
        output_tokens=row.output_length,
        block_ids=tuple(row.hash_ids[:named]),
        tail_tokens=row.input_length - named * size,
        session=row.session_id,
        request_id=row.request_id,
        tail_id=row.hash_ids[full] if with_id else None,
    )
