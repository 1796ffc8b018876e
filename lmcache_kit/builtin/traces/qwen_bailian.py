"""Usage traces of Qwen models on Alibaba Cloud's Bailian (ATC'25): one JSON object per line.

.. code-block:: json

    {"chat_id": 8, "parent_chat_id": 3, "timestamp": 1.25, "input_length": 40, "output_length": 7, "type": "text",
     "turn": 2, "hash_ids": [12, 13, 14]}

``timestamp`` is in seconds. An id stands for 16 tokens, and for those alone: blocks were hashed one by one, so equal
ids in different places are not the same cache entry. The reader chains them. A partial last block may have an id. A
chat whose parent is known belongs to its parent's conversation, named after the chat that began it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import msgspec

from lmcache_kit.builtin.traces.fields import Count, Id, Length, Time
from lmcache_kit.builtin.traces.json_lines import json_lines
from lmcache_kit.contracts.trace import TraceFormat, TraceReader, TraceRecord
from lmcache_kit.errors import InvalidRequestError
from lmcache_kit.traces.chaining import Chainer

__all__ = ["QwenBailianReader"]

BLOCK_SIZE = 16


class _Row(msgspec.Struct):
    chat_id: int
    parent_chat_id: int
    timestamp: Time
    input_length: Length
    output_length: Count
    hash_ids: list[Id]


class QwenBailianReader(TraceReader):
    """See the module's description."""

    format: ClassVar[TraceFormat] = TraceFormat(
        block_size=BLOCK_SIZE, tail="ceil", id_scope="global", chained=False, time_unit=1.0
    )

    def read(self, path: Path) -> Iterator[TraceRecord]:
        chainer = Chainer()
        roots: dict[int, int] = {}
        first: float | None = None
        for where, row in json_lines(path, _Row, hint="one JSON object per line, as in the Qwen-Bailian traces"):
            first = row.timestamp if first is None else first
            full, tail = divmod(row.input_length, BLOCK_SIZE)
            if not full <= len(row.hash_ids) <= full + bool(tail):
                raise InvalidRequestError(
                    f"{where}: {len(row.hash_ids)} hash_ids for {row.input_length} tokens, want one for each "
                    f"{BLOCK_SIZE} tokens"
                )
            root = roots[row.chat_id] = roots.get(row.parent_chat_id, row.chat_id)
            ids = chainer.chain(row.hash_ids)
            yield TraceRecord(
                arrival=row.timestamp - first,
                input_tokens=row.input_length,
                output_tokens=row.output_length,
                block_ids=tuple(ids[:full]),
                tail_tokens=tail,
                session=str(root),
                request_id=str(row.chat_id),
                tail_id=ids[full] if len(ids) > full else None,
            )
