"""Numbers and names of a time line's processes and threads."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import Any

__all__ = ["Tracks"]

_ORDER = ("workloads", "events", "requests", "operations")
"""Threads from the top; tiers come below, in the order in which they appeared."""


class Tracks:
    """Hands out process and thread ids, counted from 1, and the metadata that names them."""

    def __init__(self) -> None:
        self._processes: dict[str, int] = {}
        self._threads: dict[tuple[int, str], int] = {}
        # Per group when each lane is free and its number, sorted.
        self._lanes: dict[tuple[int, str], list[tuple[int, int]]] = {}
        self._new: list[dict[str, Any]] = []

    def process(self, name: str) -> int:
        """The process with this name."""
        pid = self._processes.get(name)
        if pid is None:
            pid = self._processes[name] = len(self._processes) + 1
            self._name("process", pid, 0, name, pid)
        return pid

    def thread(self, pid: int, name: str, *, like: str | None = None) -> int:
        """The thread with this name; sorted as ``like`` is."""
        tid = self._threads.get((pid, name))
        if tid is None:
            tid = self._threads[pid, name] = len(self._threads) + 1
            group = like or name
            place = _ORDER.index(group) if group in _ORDER else len(_ORDER)
            self._name("thread", pid, tid, name, place * 100_000 + tid)
        return tid

    def lane(self, pid: int, group: str, start: int, end: int) -> int:
        """A thread of the group on which nothing else lies between ``start`` and ``end``.

        Slices of a thread must not overlap unless one holds the other. To be asked in the order of the ends; of the
        lanes that are free the one that was busy last is taken, so few are needed.
        """
        lanes = self._lanes.setdefault((pid, group), [])
        place = bisect.bisect_right(lanes, (start, len(lanes)))
        index = lanes.pop(place - 1)[1] if place else len(lanes)
        bisect.insort(lanes, (end, index))
        return self.thread(pid, group if index == 0 else f"{group} {index + 1}", like=group)

    def new_names(self) -> Iterator[dict[str, Any]]:
        """The metadata of what is new since the last time."""
        new, self._new = self._new, []
        yield from new

    def _name(self, what: str, pid: int, tid: int, name: str, place: int) -> None:
        for kind, args in (("name", {"name": name}), ("sort_index", {"sort_index": place})):
            self._new.append({"ph": "M", "name": f"{what}_{kind}", "pid": pid, "tid": tid, "ts": 0, "args": args})
