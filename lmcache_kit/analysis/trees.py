"""Differences of plain data: two scenarios, two reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lmcache_kit.scenario.document import join

__all__ = ["Difference", "differences", "first_difference"]

Difference = dict[str, Any]
"""``path`` (dotted), and what stands there in ``a`` and ``b``; the key of a side that has nothing there is missing."""

_NOTHING = object()


def differences(a: Any, b: Any, *, skip: Callable[[str], bool] = lambda key: False) -> Iterator[Difference]:
    """Every place where two trees differ, in the order of ``a``.

    Args:
        a: dictionaries, lists and scalars.
        b: the same.
        skip: says of a key in a dictionary whether all below it is passed over.
    """
    yield from _walk(a, b, "", skip)


def first_difference(a: Any, b: Any, *, skip: Callable[[str], bool] = lambda key: False) -> Difference | None:
    """The first of :func:`differences`."""
    return next(differences(a, b, skip=skip), None)


def _walk(a: Any, b: Any, path: str, skip: Callable[[str], bool]) -> Iterator[Difference]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(key for key in b if key not in a)]:
            if not skip(key):
                yield from _walk(a.get(key, _NOTHING), b.get(key, _NOTHING), join(path, key), skip)
    elif isinstance(a, list) and isinstance(b, list):
        for index in range(max(len(a), len(b))):
            mine, its = (each[index] if index < len(each) else _NOTHING for each in (a, b))
            yield from _walk(mine, its, join(path, _label(index, mine, its)), skip)
    elif a is _NOTHING or b is _NOTHING or type(a) is not type(b) or a != b:
        # 1 and 1.0 and true are equal to Python, and other texts in a file.
        yield {
            "path": path,
            **({} if a is _NOTHING else {"a": a}),
            **({} if b is _NOTHING else {"b": b}),
        }


def _label(index: int, a: Any, b: Any) -> str:
    """The entry's ``id`` or ``name`` where both have the same one, as ``--set`` takes it, else its position."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in ("id", "name"):
            if isinstance(a.get(key), str) and a.get(key) == b.get(key):
                return str(a[key])
    return str(index)
