"""Fitting a profile: what symbols look like in channels of each spread, and where one table should end.

Channels are sorted into fine bins by the spread of their symbols, at the steps of all levels, so that a profile serves
every level. Neighbouring bins are then joined into 32 runs, one table each, such that the symbols would take the fewest
bits; the built-in distributions count as a few observations in every bin, so that each has some.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from lmcache_kit_kernels import blocks as kernel
from lmcache_kit_kernels.tables import (
    NUM_TABLES,
    PROBABILITY_BITS,
    SPREAD_UNIT,
    UNIT_GAIN,
    builtin_tables,
)

from lmcache_kit.errors import ConfigError, InvalidRequestError
from lmcache_kit.kv.layout import KVTensor
from lmcache_kit_cachegen import compute
from lmcache_kit_cachegen.levels import LEVELS, UNIFORM_SYMBOLS
from lmcache_kit_cachegen.options import CacheGenOptions
from lmcache_kit_cachegen.profile import Profile

__all__ = ["fit_profile"]

Array = np.ndarray[Any, np.dtype[Any]]

_MIDDLE = UNIFORM_SYMBOLS // 2
_TOTAL = 1 << PROBABILITY_BITS
# Bins of spread: twelve to a doubling, from 1/64 of a symbol to all of the alphabet.
_EDGES = np.rint(SPREAD_UNIT / 64 * 2 ** (np.arange(144) / 12)).astype(np.int64)
_BINS = len(_EDGES) + 1
# Symbols of the built-in distribution that every bin begins with.
_PRIOR_SYMBOLS = 64
# A table has the symbols of all but one in this many channels of its spread; the others take a wider table.
_LEFT_OUT = 50
_LEAST_REACH = 6
_AT_ONCE = 1 << 22


def fit_profile(
    samples: Iterable[KVTensor], options: CacheGenOptions, *, model: str = "", fixed_steps: bool = False
) -> Profile:
    """A profile for KV like ``samples``, which share one layout (their dtypes may differ).

    Args:
        options: which backend works; a profile serves every level.
        model: whose KV it is, in any words.
        fixed_steps: keep the steps of the samples' (layer, plane) blocks for all chunks, rather than measure each
            chunk's. Quality then no longer follows a chunk whose values are larger or smaller than the samples'.

    Raises ConfigError for quantizer lmcache and InvalidRequestError for samples without usable values.
    """
    if options.quantizer != "uniform":
        raise ConfigError("profiles are for quantizer uniform", hint="fit without quantizer: lmcache")
    statistics = _Statistics(compute.choose(options))
    shape: tuple[int, int, int, int] | None = None
    for kv in samples:
        layout = kv.layout
        own = (layout.num_layers, layout.planes, layout.num_kv_heads, layout.head_dim)
        if shape is not None and own != shape:
            raise InvalidRequestError(
                f"samples of a profile must share one layout: one has (L, P, H, D) = {shape}, another {own}"
            )
        shape = own
        if kv.num_tokens:
            statistics.add(kv.data.reshape(layout.num_layers * layout.planes, kv.num_tokens, -1))
    if shape is None or not statistics.channels:
        raise InvalidRequestError(
            "nothing to fit a profile to: the samples hold no tokens, or nothing but zeros and values that are stored "
            "as they are",
            hint="give KV of the model, a few thousand tokens of text or more",
        )
    return statistics.profile(model, shape, fixed_steps)


class _Statistics:
    """Sums over all samples, by bin of spread."""

    def __init__(self, chosen: compute.Compute) -> None:
        self._compute = chosen
        self.channels = 0
        prior = _prior()
        self._histograms = prior
        self._reaches = np.zeros((_BINS, _MIDDLE + 1), dtype=np.int64)
        squares = prior @ np.square(np.arange(-_MIDDLE, _MIDDLE + 1, dtype=np.float64))
        self._squares = squares
        self._crosses = squares * _builtin_of_bins(builtin_tables(UNIFORM_SYMBOLS).gains) / UNIT_GAIN
        self._steps: Array | None = None
        self._step_counts: Array | None = None

    def add(self, blocks: Array) -> None:
        """One sample ``[B, T, C]``."""
        if self._steps is None or self._step_counts is None:
            self._steps, self._step_counts = np.zeros(len(blocks)), np.zeros(len(blocks))
        at_once = max(1, _AT_ONCE // blocks[0].size)
        for start in range(0, len(blocks), at_once):
            part = blocks[start : start + at_once]
            for ratio in sorted({level.ratio for level in LEVELS.values()}):
                settings = kernel.Settings(quantizer="uniform", levels=(UNIFORM_SYMBOLS,) * len(part), ratio=ratio)
                with self._compute.applied():
                    quantized = kernel.quantize(part, settings, backend=self._compute.backend)
                filled = quantized.usable & part.astype(bool).any(axis=(1, 2))
                for index in np.flatnonzero(filled):
                    self._add_block(part[index], quantized, int(index))
                    # The pattern of the inverse step is ratio + 8128 - M / 2.
                    self._steps[start + index] += 2 * (ratio + 8128 - int(quantized.inverses[index]))
                    self._step_counts[start + index] += 1

    def _add_block(self, block: Array, quantized: kernel.Quantized, index: int) -> None:
        coded = quantized.symbols[index].astype(np.int64)
        symbols = np.where(coded > _MIDDLE, coded - UNIFORM_SYMBOLS, coded)
        tokens, channels = symbols.shape
        spreads = SPREAD_UNIT * np.abs(symbols).sum(axis=0) // tokens
        bins = np.searchsorted(_EDGES, spreads, side="right")
        where = (bins * UNIFORM_SYMBOLS + symbols + _MIDDLE).reshape(-1)
        self._histograms += np.bincount(where, minlength=_BINS * UNIFORM_SYMBOLS).reshape(_BINS, -1)
        np.add.at(self._reaches, (bins, np.abs(symbols).max(axis=0)), 1)
        inverse = (quantized.inverses[index].astype(np.uint32) << np.uint32(16)).view(np.float32)
        scaled = block.astype(np.float32) * inverse - quantized.centres[index].astype(np.float32)
        scaled *= np.ldexp(np.float32(1), -quantized.scales[index].astype(np.int32))[:, None]
        self._crosses += np.bincount(bins, (scaled * symbols).sum(axis=0, dtype=np.float64), minlength=_BINS)
        self._squares += np.bincount(bins, np.square(symbols).sum(axis=0), minlength=_BINS)
        self.channels += channels

    def profile(self, model: str, shape: tuple[int, int, int, int], fixed_steps: bool) -> Profile:
        histograms = self._histograms + self._histograms[:, ::-1]  # a channel's sign means nothing
        starts = _runs(histograms)
        reaches = _reach_of_runs(np.add.reduceat(self._reaches, starts))
        pooled = np.add.reduceat(histograms, starts)
        gains = np.add.reduceat(self._crosses, starts) / np.add.reduceat(self._squares, starts)
        steps = None
        if fixed_steps:
            assert self._steps is not None
            assert self._step_counts is not None
            if not self._step_counts.all():
                raise InvalidRequestError(
                    "no steps to keep: a (layer, plane) has no usable values in any sample",
                    hint="give more samples, or fit without fixed steps",
                )
            steps = tuple(int(step) for step in np.rint(self._steps / self._step_counts))
        return Profile(
            model=model,
            shape=shape,
            frequencies=np.stack([_frequencies(row, reach) for row, reach in zip(pooled, reaches, strict=True)]),
            thresholds=_EDGES[starts[1:] - 1],
            cover=np.searchsorted(reaches, np.arange(_MIDDLE + 1)),
            gains=np.clip(np.rint(UNIT_GAIN * gains), 0, UNIT_GAIN).astype(np.int64),
            log_variances=steps,
        )


def _builtin_of_bins(per_table: Array) -> Array:
    """The row of each bin's built-in table."""
    middles = np.concatenate([_EDGES, _EDGES[-1:]])
    rows: Array = per_table[np.searchsorted(builtin_tables(UNIFORM_SYMBOLS).thresholds, middles, side="right")]
    return rows


def _prior() -> Array:
    """float64 ``[bins, 127]`` over the symbols -63 to 63."""
    coded = _builtin_of_bins(builtin_tables(UNIFORM_SYMBOLS).frequencies.astype(np.float64))
    return np.roll(coded, _MIDDLE, axis=1) * _PRIOR_SYMBOLS / _TOTAL


def _runs(histograms: Array) -> Array:
    """First bins of the 32 runs of bins whose pooled histograms have the least entropy in total."""
    sums = np.concatenate([np.zeros((1, UNIFORM_SYMBOLS)), np.cumsum(histograms, axis=0)])
    costs = np.full((_BINS + 1, _BINS + 1), np.inf)
    for start in range(_BINS):
        pooled = sums[start + 1 :] - sums[start]
        total = pooled.sum(axis=1)
        # Sums of differences leave small negative numbers where there is nothing.
        logs = np.log2(np.maximum(pooled, 1e-9))
        costs[start, start + 1 :] = total * np.log2(total) - (np.maximum(pooled, 0) * logs).sum(axis=1)
    best = costs[0]
    chosen = []
    for _ in range(NUM_TABLES - 1):
        candidates = best[:, None] + costs
        chosen.append(np.argmin(candidates, axis=0))
        best = np.min(candidates, axis=0)
    starts = [_BINS]
    for previous in reversed(chosen):
        starts.append(int(previous[starts[-1]]))
    return np.array([0, *reversed(starts[1:])])


def _reach_of_runs(counts: Array) -> Array:
    """Largest magnitude that each table has, ascending, from counts ``[32, 64]`` of channels by their largest."""
    reaches = []
    for row in counts:
        within = np.cumsum(row)
        needed = within[-1] - within[-1] // _LEFT_OUT
        reaches.append(max(_LEAST_REACH, int(np.searchsorted(within, needed)) + 1) if within[-1] else _LEAST_REACH)
    reaches[-1] = _MIDDLE
    return np.minimum(np.maximum.accumulate(np.array(reaches)), _MIDDLE)


def _frequencies(histogram: Array, reach: int) -> Array:
    """One table: frequencies of the coded symbols 0 to 126 that sum to 1024, at least 1 up to ``reach``, 0 beyond."""
    counts = np.where(np.abs(np.arange(-_MIDDLE, _MIDDLE + 1)) <= reach, histogram, -1.0)
    inside = counts >= 0
    share = np.where(inside, counts, 0) / counts[inside].sum()
    row = np.where(inside, np.maximum(1, np.floor(share * _TOTAL)), 0).astype(np.int64)
    while (missing := _TOTAL - int(row.sum())) != 0:
        # One at a time, where it saves the most bits or costs the fewest.
        with np.errstate(divide="ignore", invalid="ignore"):
            if missing > 0:
                row[np.argmax(np.where(inside, share * np.log2((row + 1) / row), -1))] += 1
            else:
                row[np.argmin(np.where(row > 1, share * np.log2(row / (row - 1)), np.inf))] -= 1
    return np.roll(row, -_MIDDLE)
