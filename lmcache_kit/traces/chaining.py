"""Ids of blocks that were hashed one by one, made into ids that stand for everything before them too."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

__all__ = ["Chainer"]

_START = -1


class Chainer:
    """Numbers blocks by what they are and what stands before them.

    Two blocks get the same number exactly when their ids, their scopes and all ids before them are equal; so chaining
    ids that are chained already changes nothing but the numbers. Numbers count from 0, in order of appearance.
    """

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, Hashable, Hashable], int] = {}

    def chain(self, ids: Iterable[Hashable], *, scope: Hashable = None) -> list[int]:
        """The numbers of a prompt's blocks, in order. ``scope`` says among which prompts equal ids are equal tokens."""
        numbers = self._numbers
        before = _START
        made = []
        for each in ids:
            before = numbers.setdefault((before, scope, each), len(numbers))
            made.append(before)
        return made
