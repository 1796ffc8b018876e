"""A normalised trace as lines of Mooncake JSON, which the reader ``mooncake`` reads back as the same records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from lmcache_kit.contracts.trace import TraceFormat, TraceRecord

__all__ = ["mooncake_lines"]

_PLAIN_BLOCK_SIZE = 512


def mooncake_lines(records: Iterable[TraceRecord], form: TraceFormat) -> Iterator[bytes]:
    """One line per record, without a line end.

    Time stamps are milliseconds since the first request, to a nanosecond. What plain Mooncake rows cannot say stands
    in further fields, each only where it is needed: ``block_size`` (other than 512), ``tail`` (``floor``),
    ``session_id`` and ``request_id``.

    Args:
        records: as ``load_trace`` gives them: their ids have one scope and are not negative.
        form: their format.
    """
    for record in records:
        stamp = round(record.arrival * 1000, 6)
        row: dict[str, object] = {
            "timestamp": int(stamp) if stamp.is_integer() else stamp,
            "input_length": record.input_tokens,
            "output_length": record.output_tokens,
            "hash_ids": [*record.block_ids, *([] if record.tail_id is None else [record.tail_id])],
        }
        if form.block_size != _PLAIN_BLOCK_SIZE:
            row["block_size"] = form.block_size
        # A partial block without an id can only be told from a missing id where the row says so.
        if form.tail == "floor" or (record.tail_tokens and record.tail_id is None):
            row["tail"] = "floor"
        if record.session is not None:
            row["session_id"] = record.session
        if record.request_id is not None:
            row["request_id"] = record.request_id
        yield msgspec.json.encode(row)
