"""Traces in the format of Mooncake (FAST'25): one JSON object per line.

.. code-block:: json

    {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 2353, 2354]}

``timestamp`` is in milliseconds. Each id stands for 512 tokens and, being chained, for all tokens before them; the
number of ids is ``input_length / 512`` rounded up, so the last id may stand for a partial block.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from lmcache_kit.contracts.trace import TraceFormat, TraceReader, TraceRecord
from lmcache_kit.errors import InvalidRequestError

__all__ = ["MooncakeReader"]

BLOCK_SIZE = 512

Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class _Row(msgspec.Struct):
    timestamp: Annotated[float, Meta(ge=0)]
    input_length: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    output_length: Count
    hash_ids: list[Annotated[int, Meta(ge=0, le=2**63 - 1)]]


class MooncakeReader(TraceReader):
    """See the module's description. Arrivals count from the first row, wherever later rows stand in time."""

    format: ClassVar[TraceFormat] = TraceFormat(
        block_size=BLOCK_SIZE, tail="ceil", id_scope="global", chained=True, time_unit=1e-3
    )

    def read(self, path: Path) -> Iterator[TraceRecord]:
        decoder = msgspec.json.Decoder(_Row)
        first: float | None = None
        try:
            with path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if not line.strip():
                        continue
                    row = _decode(decoder, line, f"{path}:{number}")
                    first = row.timestamp if first is None else first
                    yield _record(row, first)
        except OSError as error:
            raise InvalidRequestError(f"{path} cannot be read: {error.strerror}") from None


def _decode(decoder: msgspec.json.Decoder[_Row], line: bytes, where: str) -> _Row:
    try:
        row = decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(
            f"{where}: {error}", hint="one JSON object per line, as in the Mooncake traces"
        ) from None
    blocks = -(-row.input_length // BLOCK_SIZE)
    if len(row.hash_ids) != blocks:
        raise InvalidRequestError(
            f"{where}: {len(row.hash_ids)} hash_ids for {row.input_length} tokens, want {blocks} of {BLOCK_SIZE} tokens"
        )
    return row


def _record(row: _Row, first: float) -> TraceRecord:
    full, tail = divmod(row.input_length, BLOCK_SIZE)
    return TraceRecord(
        arrival=(row.timestamp - first) * MooncakeReader.format.time_unit,
        input_tokens=row.input_length,
        output_tokens=row.output_length,
        block_ids=tuple(row.hash_ids[:full]),
        tail_tokens=tail,
        tail_id=row.hash_ids[full] if tail else None,
    )
