"""The entropy coder: one state per lane, words of a group of lanes interleaved in one run.

A lane codes S symbols one after another with a 32-bit state in ``[2**16, 2**32)`` and moves 16-bit words. All lanes of
a group share one run of words. Decoding takes, step by step, one word for each lane whose state fell below ``2**16``,
in the order of the lanes, so positions follow from a sum over lanes and no lane needs a stream of its own. Encoding
goes through the steps backwards, and the run is stored in the order of decoding.

A step emits at most one word per lane: the largest output is known before coding, and nothing can overflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lmcache_kit_kernels.backends import implementation
from lmcache_kit_kernels.errors import CorruptStreamError
from lmcache_kit_kernels.tables import NUM_TABLES, PROBABILITY_BITS, TableSet

__all__ = ["GROUP_LANES", "LOWER_BOUND", "Streams", "check_ends", "decode", "encode", "groups_of"]

Array = np.ndarray[Any, np.dtype[Any]]

GROUP_LANES = 32
"""Lanes that share a run unless told otherwise: one warp."""
LOWER_BOUND = 1 << 16


def groups_of(lanes: int, group: int) -> int:
    """Number of groups; the last one may hold fewer lanes."""
    return -(-lanes // group)


@dataclass(frozen=True, slots=True, eq=False)
class Streams:
    """Coded symbols of B blocks of N lanes.

    Args:
        states: uint32 ``[B, N]``, where decoding starts.
        counts: uint32 ``[B, G]``, words in each group's run.
        words: uint16 ``[counts.sum()]``, the runs one after another, block by block.
    """

    states: Array
    counts: Array
    words: Array


def encode(
    symbols: Array, chosen: Array, tables: TableSet, *, group: int = GROUP_LANES, backend: str = "numpy"
) -> Streams:
    """Code symbols.

    Args:
        symbols: uint8 ``[B, S, N]``, S >= 1 steps of N >= 1 lanes, each below ``tables.levels``.
        chosen: uint8 ``[B, K, N]``: step s of a lane uses table ``chosen[b, s % K, lane]``, each below 32.
        tables: the tables.
        group: lanes per run, at least 1.
        backend: ``numpy`` or ``xla``; the same bytes from both.

    Raises ValueError for a symbol that its table does not have. (A backend's own ``encode`` trusts its caller there:
    with a frequency of zero its result is unspecified.)
    """
    _check(symbols.shape, chosen, group)
    if symbols.dtype != np.uint8:
        raise ValueError(f"symbols must be uint8, not {symbols.dtype}")
    _check_codable(symbols, chosen, tables)
    group = min(group, symbols.shape[2])
    states, counts, words = implementation("rans", backend).encode(symbols, chosen, tables, group)
    return Streams(states, counts, words)


def decode(
    streams: Streams,
    chosen: Array,
    tables: TableSet,
    steps: int,
    *,
    group: int = GROUP_LANES,
    backend: str = "numpy",
) -> Array:
    """Symbols uint8 ``[B, steps, N]`` of what :func:`encode` returned for these tables and group.

    Raises:
        CorruptStreamError: a state is out of range, a run does not end where its count says, or a lane does not end
            in the state that encoding began with. Nothing outside the streams is read, whatever they hold.
    """
    blocks, lanes = streams.states.shape
    _check((blocks, steps, lanes), chosen, group)
    group = min(group, lanes)
    groups = groups_of(lanes, group)
    if streams.counts.shape != (blocks, groups) or int(streams.counts.sum(dtype=np.uint64)) != streams.words.size:
        raise CorruptStreamError("word counts do not add up to the words at hand")
    if int(streams.states.min()) < LOWER_BOUND:
        raise CorruptStreamError("a lane starts below the range of coder states")
    symbols: Array
    symbols, ends, consumed = implementation("rans", backend).decode(
        streams.states, streams.counts, streams.words, chosen, tables, steps, group
    )
    check_ends(streams.counts, consumed, ends)
    return symbols


def check_ends(counts: Array, consumed: Array, ends: Array) -> None:
    """Raises CorruptStreamError unless each run was ``consumed`` whole and each lane is back in its first state."""
    if not np.array_equal(consumed, counts):
        raise CorruptStreamError("a run of words ends elsewhere than its count says")
    if np.any(ends != LOWER_BOUND):
        raise CorruptStreamError("a lane does not end in the state that encoding began with")


def _check(shape: tuple[int, ...], chosen: Array, group: int) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"symbols must be [B, S, N] with at least one of each, got {shape}")
    if chosen.ndim != 3 or (chosen.shape[0], chosen.shape[2]) != (shape[0], shape[2]) or chosen.dtype != np.uint8:
        raise ValueError(f"chosen must be uint8 [B, K, N] for symbols {shape}, got {chosen.dtype} {chosen.shape}")
    if chosen.shape[1] < 1 or group < 1:
        raise ValueError("there must be at least one table per lane and one lane per group")
    if int(chosen.max()) >= NUM_TABLES:
        raise ValueError(f"there is no table {int(chosen.max())}, they are numbered to {NUM_TABLES - 1}")
    assert LOWER_BOUND % (1 << PROBABILITY_BITS) == 0


def _check_codable(symbols: Array, chosen: Array, tables: TableSet) -> None:
    if int(symbols.max()) >= tables.levels:
        raise ValueError(f"symbols must be below {tables.levels}, one is {int(symbols.max())}")
    if tables.frequencies.all():
        return
    kinds = chosen.shape[1]
    for kind in range(min(kinds, symbols.shape[1])):
        if not tables.frequencies[chosen[:, kind, None], symbols[:, kind::kinds]].all():
            raise ValueError("a symbol has frequency 0 under the table chosen for it")
