"""Rows of files with one JSON object per line, each with the place to name when it is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from lmcache_kit.errors import InvalidRequestError

__all__ = ["json_lines"]

T = TypeVar("T")


def json_lines(path: Path, row: type[T], *, hint: str) -> Iterator[tuple[str, T]]:
    """``(FILE:LINE, row)`` of each line that is not empty. Raises InvalidRequestError naming file and line."""
    decoder = msgspec.json.Decoder(row)
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                where = f"{path}:{number}"
                try:
                    yield where, decoder.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    raise InvalidRequestError(f"{where}: {error}", hint=hint) from None
    except OSError as error:
        raise InvalidRequestError(f"{path} cannot be read: {error.strerror}") from None
