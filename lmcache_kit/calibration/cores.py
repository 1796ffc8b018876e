"""How many cores the machine of wall runs is worth, found by playing the run with several numbers.

Two hardware threads of one core do less than two cores, and other programs take their part, so the number that explains
a run is no whole one. Nothing in a run says it; that requests slow each other down does.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from lmcache_kit.calibration.findings import Findings
from lmcache_kit.calibration.judging import request_pairs
from lmcache_kit.calibration.observations import ENOUGH, observe_all

__all__ = ["find_cores"]

COARSE = (1.0, 1.4, 2.0, 2.8, 4.0)
_NARROWER = 3


def find_cores(
    walls: Sequence[Path], fit: Callable[[float | None], Findings], play: Callable[[Findings, Path], object]
) -> float | None:
    """The number of cores with which virtual requests are nearest to those of the wall runs, by the mean of how many
    times too long or too short they take to their first token. None, for as many as are needed, when that is as near,
    or when fewer than twenty requests met others.

    Args:
        walls: output directories of wall runs of one scenario.
        fit: costs for a number of cores.
        play: plays the run's scenario with costs into a folder.
    """
    if sum(not each.alone for each in observe_all(walls, warm_up=0).requests) < ENOUGH:
        return None
    known: dict[float | None, float] = {}

    def missed(cores: float | None) -> float:
        if cores not in known:
            with tempfile.TemporaryDirectory() as folder:
                play(fit(cores), Path(folder))
                known[cores] = _distance(walls, Path(folder))
        return known[cores]

    best = min(COARSE, key=missed)
    step = math.sqrt(COARSE[1] / COARSE[0])
    for _ in range(_NARROWER):
        # Less than one is no number: what requests take by themselves was measured on the same machine.
        best = min((max(1.0, best / step), best, best * step), key=missed)
        step = math.sqrt(step)
    return None if missed(None) <= missed(best) * 1.01 else round(best, 2)


def _distance(walls: Sequence[Path], virtual: Path) -> float:
    pairs = [pair for wall in walls for pair in request_pairs(wall, virtual)]
    ratios = [pair["ttft_seconds"][1] / pair["ttft_seconds"][0] for pair in pairs]
    return statistics.fmean(abs(math.log(ratio)) for ratio in ratios) if ratios else math.inf
