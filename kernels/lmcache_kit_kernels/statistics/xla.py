"""XLA implementation: one jitted function per direction."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmcache_kit_kernels.tables import SPREAD_UNIT, TableSet

__all__ = ["fit", "fit_traced", "restore", "restore_traced"]

Array = np.ndarray[Any, np.dtype[Any]]


def fit_traced(
    symbols: jax.Array, thresholds: jax.Array, cover: jax.Array, *, levels: int, centred: bool, anchor_group: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Centres, tables, flags and coded symbols, for use inside other jitted functions."""
    tokens = symbols.shape[1]
    wide = symbols.astype(jnp.int32)
    if centred:
        centres = jnp.zeros((wide.shape[0], 1, wide.shape[2]), jnp.int32)
        magnitudes = _magnitudes(wide, levels)
    else:
        centres = (2 * jnp.sum(wide, axis=1, keepdims=True) + tokens) // (2 * tokens)
        magnitudes = jnp.abs(wide - centres)
    coded = (wide - centres) % levels
    sums, largest = _sum(magnitudes), jnp.max(magnitudes, axis=1)
    flags = jnp.zeros(sums.shape, bool)
    if anchor_group:
        place = jnp.arange(tokens)
        deltas = jnp.where(
            (place % anchor_group == 0)[:, None], coded, (coded - _anchors(coded, anchor_group)) % levels
        )
        delta_magnitudes = _magnitudes(deltas, levels)
        delta_sums = _sum(delta_magnitudes)
        flags = delta_sums < sums
        coded = jnp.where(flags[:, None], deltas, coded)
        sums = jnp.where(flags, delta_sums, sums)
        largest = jnp.where(flags, jnp.max(delta_magnitudes, axis=1), largest)
    spreads = SPREAD_UNIT * sums // tokens
    by_spread = jnp.sum(spreads[..., None] >= thresholds, axis=-1, dtype=jnp.int32)
    tables = jnp.maximum(by_spread, cover[jnp.minimum(largest, levels // 2)].astype(jnp.int32))
    return centres[:, 0].astype(jnp.uint8), tables.astype(jnp.uint8), flags, coded.astype(jnp.uint8)


def restore_traced(
    coded: jax.Array, centres: jax.Array, flags: jax.Array | None, *, levels: int, anchor_group: int
) -> jax.Array:
    """The symbols of :func:`fit_traced` again, for use inside other jitted functions."""
    wide = coded.astype(jnp.int32)
    if flags is not None:
        place = jnp.arange(coded.shape[1])
        moves = jnp.where(flags[:, None] & (place % anchor_group != 0)[:, None], _anchors(wide, anchor_group), 0)
        wide = (wide + moves) % levels
    return ((wide + centres[:, None]) % levels).astype(jnp.uint8)


def _magnitudes(residues: jax.Array, levels: int) -> jax.Array:
    return jnp.minimum(residues, levels - residues)


def _sum(magnitudes: jax.Array) -> jax.Array:
    return jnp.sum(magnitudes, axis=1, dtype=jnp.uint32)


def _anchors(coded: jax.Array, group: int) -> jax.Array:
    """For every token the symbols of its anchor."""
    tokens = coded.shape[1]
    return jnp.repeat(coded[:, ::group], group, axis=1)[:, :tokens]


_fit = functools.partial(jax.jit, static_argnames=("levels", "centred", "anchor_group"))(fit_traced)
_restore = functools.partial(jax.jit, static_argnames=("levels", "anchor_group"))(restore_traced)


def fit(symbols: Array, tables: TableSet, centred: bool, anchor_group: int) -> tuple[Array, Array, Array, Array]:
    """See :func:`lmcache_kit_kernels.statistics.fit`; returns centres, tables, flags and coded symbols."""
    centres, chosen, flags, coded = _fit(
        symbols, tables.thresholds, tables.cover, levels=tables.levels, centred=centred, anchor_group=anchor_group
    )
    return np.asarray(centres), np.asarray(chosen), np.asarray(flags), np.asarray(coded)


def restore(coded: Array, centres: Array, flags: Array | None, levels: int, anchor_group: int) -> Array:
    """See :func:`lmcache_kit_kernels.statistics.restore`."""
    return np.asarray(_restore(coded, centres, flags, levels=levels, anchor_group=anchor_group))
