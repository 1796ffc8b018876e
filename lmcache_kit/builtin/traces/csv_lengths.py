"""Traces in CSV that say when requests came and how long they were, and nothing of their prefixes."""

from __future__ import annotations

import csv
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from lmcache_kit.contracts.trace import TraceFormat, TraceReader, TraceRecord
from lmcache_kit.errors import InvalidRequestError

__all__ = ["AzureReader", "BurstGPTReader"]

_LARGEST = 2**31 - 1
_DIGITS = 10


class _LengthsReader(TraceReader):
    """Columns are found by the names in the first line; others than the needed ones may stand between them."""

    format: ClassVar[TraceFormat] = TraceFormat(
        block_size=0, tail="floor", id_scope="global", chained=True, time_unit=1.0
    )
    time: ClassVar[str]
    inputs: ClassVar[str]
    outputs: ClassVar[str]
    session: ClassVar[str] = ""

    @abstractmethod
    def seconds(self, text: str) -> float:
        """A time stamp in seconds. Raises ValueError."""

    def read(self, path: Path) -> Iterator[TraceRecord]:
        first: float | None = None
        for where, row in self._rows(path):
            try:
                stamp = self.seconds(row[self.time] or "")
            except (ValueError, OverflowError):
                raise InvalidRequestError(f"{where}: {self.time} {row[self.time]!r} is not a time") from None
            first = stamp if first is None else first
            tokens = _count(row, self.inputs, where, least=1)
            yield TraceRecord(
                arrival=stamp - first,
                input_tokens=tokens,
                output_tokens=_count(row, self.outputs, where, least=0),
                block_ids=(),
                tail_tokens=tokens,
                session=row.get(self.session) or None,
            )

    def _rows(self, path: Path) -> Iterator[tuple[str, Mapping[str, str | None]]]:
        try:
            with path.open("rb") as lines:
                yield from self._rows_of(path, csv.DictReader(_texts(path, lines), strict=True))
        except OSError as error:
            raise InvalidRequestError(f"{path} cannot be read: {error.strerror}") from None

    def _rows_of(self, path: Path, rows: csv.DictReader[str]) -> Iterator[tuple[str, Mapping[str, str | None]]]:
        try:
            missing = [name for name in (self.time, self.inputs, self.outputs) if name not in (rows.fieldnames or ())]
            if missing:
                raise InvalidRequestError(
                    f"{path}:1: no column {missing[0]!r}",
                    hint=f"a first line with {self.time}, {self.inputs} and {self.outputs}",
                )
            for row in rows:
                yield f"{path}:{rows.line_num}", row
        except csv.Error as error:
            # Where the row begins: a quote that is never closed takes all lines after it.
            raise InvalidRequestError(f"{path}:{rows.line_num + 1}: {error}") from None


def _texts(path: Path, lines: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequestError(f"{path}:{number}: {error}") from None


def _count(row: Mapping[str, str | None], column: str, where: str, *, least: int) -> int:
    text = (row[column] or "").strip()
    # A length is looked at before the number is: Python refuses to read very long ones.
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS) or not least <= int(text) <= _LARGEST:
        raise InvalidRequestError(f"{where}: {column} {text[:40]!r} is not a whole number from {least} to {_LARGEST}")
    return int(text)


class AzureReader(_LengthsReader):
    """Azure's LLM inference traces of 2023 and 2024: ``TIMESTAMP,ContextTokens,GeneratedTokens``, times as dates."""

    time, inputs, outputs = "TIMESTAMP", "ContextTokens", "GeneratedTokens"

    def seconds(self, text: str) -> float:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


class BurstGPTReader(_LengthsReader):
    """BurstGPT: ``Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type``, times in seconds.

    Newer releases have a ``Session ID`` too. Requests that failed have an answer of 0 tokens.
    """

    time, inputs, outputs, session = "Timestamp", "Request tokens", "Response tokens", "Session ID"

    def seconds(self, text: str) -> float:
        value = float(text)
        if not 0 <= value < 1e15:
            raise ValueError(text)
        return value
