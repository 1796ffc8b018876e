"""What the scheduler tells the ranks in a step, and what they answer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from lmcache_kit_vllm.staging import Piece

__all__ = ["Copy", "Report", "StepPlan"]


@dataclass(frozen=True, slots=True)
class Copy:
    """KV of consecutive tokens of one request, to be copied between its blocks and the staging memory.

    Args:
        number: names the copy in the ranks' reports.
        piece: where the KV lies in the staging memory.
        piece_start: token of the request that the piece begins with.
        start: first token to copy.
        stop: the token after the last one to copy.
        blocks: ids of the request's blocks that hold tokens ``start`` to ``stop``, from the block of ``start`` on.
    """

    number: int
    piece: Piece
    piece_start: int
    start: int
    stop: int
    blocks: list[int]


@dataclass(slots=True)
class StepPlan:
    """Copies of one step.

    Args:
        loads: into the blocks, before the model reads them.
        saves: out of the blocks, after the model has written them.
        place: where ranks find the staging memory.
    """

    place: tuple[str, int]
    loads: list[Copy] = field(default_factory=list)
    saves: list[Copy] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """What ranks have done since their last report.

    Args:
        done: how many of them are through with a copy, by the copy's number.
        failed: copies that did not work on some rank; they are among ``done`` all the same.
    """

    done: Counter[int] = field(default_factory=Counter)
    failed: set[int] = field(default_factory=set)

    def plus(self, other: Report) -> Report:
        """Both reports in one."""
        return Report(self.done + other.done, self.failed | other.failed)
