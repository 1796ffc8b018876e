"""What :mod:`lmcache_kit_kernels.blocks` takes and returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from lmcache_kit_kernels.rans import GROUP_LANES
from lmcache_kit_kernels.tables import TableSet, builtin_tables_by_levels
from lmcache_kit_kernels.uniform.arguments import LEVELS, check_refinement

__all__ = ["Coded", "Quantized", "Settings"]

Array = np.ndarray[Any, np.dtype[Any]]

_LMCACHE_LEVELS = (15, 31)


@dataclass(frozen=True, slots=True, eq=False)
class Settings:
    """How B blocks are coded. Raises ValueError for settings that contradict each other.

    Args:
        quantizer: ``lmcache`` (:mod:`lmcache_kit_kernels.quantize`) or ``uniform``.
        levels: symbols of each block: 15 or 31 for ``lmcache``, 127 for ``uniform``.
        ratio: ``uniform``: bfloat16 pattern of deviation over step. Not needed to decode.
        log_variances: ``uniform``: M of each block where a profile gives it; None: measured.
        refined_tokens, refine_bits: ``uniform``: how many of the first tokens keep how many more bits (1, 2 or 4).
        anchor_group: tokens per anchor where a channel is coded as deltas; 0: never.
        fold: coder steps per token, a divisor of the channels: step ``t * fold + c // N`` of lane ``c % N`` is channel
            c of token t, with N = C / fold lanes.
        group: lanes that share a run of words.
        tables: table set by number of levels.
    """

    quantizer: Literal["lmcache", "uniform"]
    levels: tuple[int, ...]
    ratio: int = 0
    log_variances: tuple[int, ...] | None = None
    refined_tokens: int = 0
    refine_bits: int = 0
    anchor_group: int = 0
    fold: int = 1
    group: int = GROUP_LANES
    tables: Mapping[int, TableSet] = field(default_factory=builtin_tables_by_levels)

    def __post_init__(self) -> None:
        allowed = _LMCACHE_LEVELS if self.quantizer == "lmcache" else (LEVELS,)
        if self.quantizer not in ("lmcache", "uniform"):
            raise ValueError(f"quantizer must be lmcache or uniform, not {self.quantizer!r}")
        if not self.levels:
            raise ValueError("there must be at least one block")
        for levels in set(self.levels):
            if levels not in allowed:
                raise ValueError(f"{self.quantizer} has {' or '.join(map(str, allowed))} levels, not {levels}")
            if levels not in self.tables or self.tables[levels].levels != levels:
                raise ValueError(f"there is no table set for {levels} levels")
        check_refinement(self.refined_tokens, self.refine_bits)
        if self.quantizer == "lmcache" and (self.refined_tokens or self.log_variances is not None or self.ratio):
            raise ValueError("ratio, log variances and refinement belong to the uniform quantizer")
        if self.log_variances is not None and len(self.log_variances) != len(self.levels):
            raise ValueError(f"there are {len(self.log_variances)} log variances for {len(self.levels)} blocks")
        if self.anchor_group < 0 or self.fold < 1 or self.group < 1:
            raise ValueError("fold and group are at least 1, an anchor group at least 0")


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """Entropy-coded blocks: B blocks of T tokens, C channels, N lanes in G groups, R refined tokens.

    Args:
        scales: ``lmcache``: maxima ``[B, T]`` in the blocks' dtype; ``uniform``: exponents uint8 ``[B, T]``.
        inverses: uint16 ``[B]``: ``uniform``: bfloat16 patterns; ``lmcache``: zeros.
        centres: ``lmcache``: uint8 ``[B, C]``; ``uniform``: offsets, int16 ``[B, C]``.
        tables: uint8 ``[B, C]`` below 32.
        flags: bool ``[B, C]``, channels coded as deltas to their anchors; None without an anchor group.
        refinements: uint8 ``[B, R, C]``; None without refinement.
        states: uint32 ``[B, N]``.
        counts: uint32 ``[B, G]``.
        words: uint16 ``[counts.sum()]``, the runs one after another, block by block.
        usable: bool ``[B]``. A block with False must be kept in another way: its other arrays are well-formed but
            stand for something else.
    """

    scales: Array
    inverses: Array
    centres: Array
    tables: Array
    flags: Array | None
    refinements: Array | None
    states: Array
    counts: Array
    words: Array
    usable: Array


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """Quantized blocks, before centring and coding.

    Args:
        scales, inverses, refinements, usable: as in :class:`Coded`.
        centres: ``uniform``: offsets, int16 ``[B, C]``; ``lmcache``: zeros, uint8 ``[B, C]``.
        symbols: uint8 ``[B, T, C]`` below the block's levels: ``lmcache``: as LMCache counts them; ``uniform``: the
            signed symbol mod 127.
    """

    scales: Array
    inverses: Array
    centres: Array
    symbols: Array
    refinements: Array | None
    usable: Array
