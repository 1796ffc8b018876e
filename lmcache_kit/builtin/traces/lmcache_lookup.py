"""Logs of LMCache's lookups (``lookup_hashes_*.jsonl``): one JSON object per line, in one file or a folder of them.

.. code-block:: json

    {"timestamp": 1711929600.123, "request_id": "req-abc", "model_name": "m", "chunk_size": 256, "seq_len": 700,
     "dtypes": ["bfloat16"], "shapes": [[2, 32, 256, 1024]], "chunk_hashes": ["0x1f", "0x2a"]}

``timestamp`` is in seconds since 1970. Hashes are chained and stand for full chunks only, so tail tokens are never
shared; a lookup may cover the first part of a prompt only. The log says nothing of answers: completions have 0 tokens.
A request that is looked up again keeps its name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from lmcache_kit.builtin.traces.fields import Count, Length, Time
from lmcache_kit.builtin.traces.json_lines import json_lines
from lmcache_kit.builtin.traces.options import LMCacheLookupOptions
from lmcache_kit.contracts.trace import TraceFormat, TraceReader, TraceRecord
from lmcache_kit.errors import InvalidRequestError

__all__ = ["LMCacheLookupReader"]

_FILES = "lookup_hashes_*.jsonl"


class _Row(msgspec.Struct):
    timestamp: Time
    chunk_size: Length
    seq_len: Count
    chunk_hashes: list[Annotated[str, Meta(pattern=r"^(0x)?[0-9a-fA-F]+$")]]
    request_id: str = ""
    model_name: str = ""


class LMCacheLookupReader(TraceReader):
    """See the module's description. Arrivals count from the first row."""

    format: ClassVar[TraceFormat] = TraceFormat(
        block_size=256, tail="floor", id_scope="global", chained=True, time_unit=1.0
    )

    def __init__(self, options: LMCacheLookupOptions) -> None:
        self._model = options.model
        self._read = self.format

    def format_read(self) -> TraceFormat:
        return self._read

    def read(self, path: Path) -> Iterator[TraceRecord]:
        self._read = self.format
        numbers: dict[str, int] = {}
        first: float | None = None
        for where, row in self._rows(path):
            if not row.seq_len or (self._model is not None and row.model_name != self._model):
                continue
            if first is None:
                first = row.timestamp
                self._read = dataclasses.replace(self.format, block_size=row.chunk_size)
            if row.chunk_size != self._read.block_size:
                raise InvalidRequestError(
                    f"{where}: chunks of {row.chunk_size} tokens, rows before have {self._read.block_size}",
                    hint="name one model with the reader's option model",
                )
            hashed = len(row.chunk_hashes) * row.chunk_size
            if hashed > row.seq_len:
                raise InvalidRequestError(
                    f"{where}: {len(row.chunk_hashes)} chunk_hashes for {row.seq_len} tokens, "
                    f"want at most {row.seq_len // row.chunk_size} of {row.chunk_size} tokens"
                )
            yield TraceRecord(
                arrival=row.timestamp - first,
                input_tokens=row.seq_len,
                output_tokens=0,
                block_ids=tuple(numbers.setdefault(each, len(numbers)) for each in row.chunk_hashes),
                tail_tokens=row.seq_len - hashed,
                request_id=row.request_id or None,
            )

    def _rows(self, path: Path) -> Iterator[tuple[str, _Row]]:
        files = sorted(path.glob(_FILES)) if path.is_dir() else [path]
        if not files:
            raise InvalidRequestError(f"{path} has no {_FILES}")
        for file in files:
            yield from json_lines(file, _Row, hint="one JSON object per line, as LMCache logs its lookups")
