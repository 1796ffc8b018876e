"""What a figure depends on besides the code: the machine, the versions, and how busy the machine was."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["hardware", "load_average", "process_cpu_seconds", "resident_bytes", "versions"]


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in bytes, and the operating system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _field("/proc/cpuinfo", r"model name\s*:\s*(.+)") or platform.processor() or platform.machine(),
        "cores": cores,
        "memory_bytes": _kilobytes("/proc/meminfo", "MemTotal"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def versions(distributions: Iterable[str] = ()) -> dict[str, str]:
    """Python, lmcache-kit and those of ``distributions`` that are installed."""
    found = {"python": platform.python_version()}
    for name in ("lmcache-kit", "numpy", *distributions):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def load_average() -> list[float]:
    """Over 1, 5 and 15 minutes; empty where the system has none."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else []


def resident_bytes(pid: int) -> int | None:
    """Resident memory of a process; None where /proc does not say."""
    return _kilobytes(f"/proc/{pid}/status", "VmRSS")


def process_cpu_seconds(pid: int) -> float | None:
    """User and system time that a process has used with all its threads; None where /proc does not say."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return None
    # The command's name, in parentheses, may itself hold spaces and parentheses.
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _field(path: str, pattern: str) -> str | None:
    file = Path(path)
    found = re.search(pattern, file.read_text()) if file.exists() else None
    return found[1] if found else None


def _kilobytes(path: str, name: str) -> int | None:
    found = _field(path, rf"{name}:\s+(\d+) kB")
    return int(found) * 1024 if found else None
