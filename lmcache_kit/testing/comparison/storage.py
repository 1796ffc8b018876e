"""Speed of a storage backend for small and large objects."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lmcache_kit.codec_tools.timing import median_seconds
from lmcache_kit.contracts.records import Options, StoragePlugin
from lmcache_kit.contracts.storage import StorageContext

__all__ = ["measure"]

_SIZES = {"64 KiB": 1 << 16, "4 MiB": 1 << 22}
_OBJECTS = 4


def measure(
    record: StoragePlugin, options: Options, *, seconds: float, sample: Path | None
) -> Mapping[str, float | int | str | None]:
    """MB/s (10**6 bytes) of writing and reading objects one by one, from one thread, warm."""
    figures: dict[str, float | int | str | None] = {}
    with tempfile.TemporaryDirectory(prefix="lmcache-kit-compare-") as folder:
        context = StorageContext(
            instance_id="check", location=record.location, capacity_bytes=None, data_dir=Path(folder)
        )
        backend = record.factory(options, context)
        names = [f"check.{secrets.token_hex(6)}.{number}" for number in range(_OBJECTS)]
        try:
            for label, size in _SIZES.items():
                # A view: a backend that keeps bytes objects would otherwise copy nothing.
                blob = memoryview(bytearray(secrets.token_bytes(1 << 16)) * (size >> 16))

                def put(blob: memoryview = blob) -> None:
                    for name in names:
                        backend.put(name, blob)

                def get() -> None:
                    for name in names:
                        blob = backend.get(name)
                        if blob is None:
                            raise LookupError(f"get answers None for {name!r}, which was put")
                        # Looked at: a store in memory hands out what it has, a mapped file is read only then.
                        np.bitwise_xor.reduce(np.frombuffer(blob, dtype=np.uint64))

                put()
                moved = _OBJECTS * size / 1e6
                figures[f"put {label} MB/s"] = moved / median_seconds(put, seconds)
                figures[f"get {label} MB/s"] = moved / median_seconds(get, seconds)
        finally:
            try:
                for name in names:
                    backend.delete(name)
            finally:
                backend.close()
    return figures
