"""Blocks of different alphabets in one call: each alphabet's blocks are coded together, words stay in block order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lmcache_kit_kernels.blocks.records import Coded, Settings

__all__ = ["by_levels", "join", "select", "split"]

Array = np.ndarray[Any, np.dtype[Any]]

_PER_BLOCK = ("scales", "inverses", "centres", "tables", "flags", "refinements", "states", "counts")


def by_levels(settings: Settings) -> list[tuple[int, list[int]]]:
    """For each number of levels in use, the blocks that have it."""
    return [
        (levels, [index for index, own in enumerate(settings.levels) if own == levels])
        for levels in sorted(set(settings.levels))
    ]


def select(array: Array, some: Sequence[int]) -> Array:
    """``array[some]``, without a copy where that is all of it. Takes jax arrays, too."""
    return array if len(some) == len(array) else array[np.asarray(some)]


def join(settings: Settings, parts: Sequence[Coded]) -> Coded:
    """The parts, one for each entry of :func:`by_levels`, as one."""
    if len(parts) == 1:
        return parts[0]
    order = np.argsort([index for _, some in by_levels(settings) for index in some])
    runs = [run for part in parts for run in _runs(part)]

    def column(name: str) -> Any:
        arrays = [getattr(part, name) for part in parts]
        return None if arrays[0] is None else np.concatenate(arrays)[order]

    return Coded(
        **{name: column(name) for name in _PER_BLOCK},
        words=np.concatenate([runs[index] for index in order]),
        usable=column("usable"),
    )


def split(settings: Settings, coded: Coded) -> Iterator[tuple[int, list[int], Coded]]:
    """For each number of levels the blocks that have it, and their part of ``coded``."""
    groups = by_levels(settings)
    if len(groups) == 1:
        yield *groups[0], coded
        return
    runs = _runs(coded)
    for levels, some in groups:

        def column(name: str, some: list[int] = some) -> Any:
            array = getattr(coded, name)
            return None if array is None else array[some]

        words = np.concatenate([runs[index] for index in some])
        yield levels, some, Coded(**{name: column(name) for name in _PER_BLOCK}, words=words, usable=column("usable"))


def _runs(coded: Coded) -> list[Array]:
    """The words of each block."""
    return np.split(coded.words, np.cumsum(coded.counts.sum(axis=1, dtype=np.int64))[:-1])
