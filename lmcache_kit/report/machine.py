"""``machine.json``: what a virtual run has to say of the machine and the day, apart from its report.

The report of a virtual run is the same, byte for byte, wherever and whenever it is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from lmcache_kit.report.host import host_facts, versions

__all__ = ["FILE_NAME", "SCHEMA_VERSION", "machine_facts", "write_machine_facts"]

FILE_NAME = "machine.json"
SCHEMA_VERSION = 1


def machine_facts(*, started: float, seconds: float) -> dict[str, Any]:
    """When the run began (seconds since 1970), how long it really took, and on what."""
    return {
        "schema_version": SCHEMA_VERSION,
        "started_unix": started,
        "seconds": seconds,
        "versions": versions(),
        "host": host_facts(),
    }


def write_machine_facts(folder: Path, *, started: float, seconds: float) -> None:
    """Write ``machine.json`` into a run's output directory; both arguments as of the wall clock."""
    text = msgspec.json.format(msgspec.json.encode(machine_facts(started=started, seconds=seconds)), indent=2)
    (folder / FILE_NAME).write_bytes(text + b"\n")
