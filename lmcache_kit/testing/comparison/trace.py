"""Speed of a trace reader on the author's sample, beside ``mooncake`` on the same requests in its own format."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from lmcache_kit.builtin.traces.mooncake import MooncakeReader
from lmcache_kit.codec_tools.timing import median_seconds
from lmcache_kit.contracts.records import Options, TracePlugin
from lmcache_kit.contracts.trace import TraceReader
from lmcache_kit.errors import InvalidRequestError
from lmcache_kit.traces import load_trace
from lmcache_kit.traces.lines import mooncake_lines

__all__ = ["measure"]


def measure(
    record: TracePlugin, options: Options, *, seconds: float, sample: Path | None
) -> Mapping[str, float | int | str | None]:
    """Requests per second of the sample, beside those of the same requests in Mooncake's format."""
    if sample is None:
        raise InvalidRequestError("needs a well-formed file of this format", hint="give one with --sample FILE")
    reader = record.factory(options)
    form, records = load_trace(sample, reader)
    if not records:
        raise InvalidRequestError(f"{sample} holds no request")
    with tempfile.TemporaryDirectory(prefix="lmcache-kit-compare-") as folder:
        path = Path(folder) / "mooncake.jsonl"
        path.write_bytes(b"".join(line + b"\n" for line in mooncake_lines(records, form)))
        return {
            "requests": len(records),
            "requests/s": len(records) / _seconds(reader, sample, seconds),
            "as mooncake requests/s": len(records) / _seconds(MooncakeReader(), path, seconds),
        }


def _seconds(reader: TraceReader, path: Path, seconds: float) -> float:
    def read() -> None:
        for _ in reader.read(path):
            pass

    read()
    return median_seconds(read, seconds)
