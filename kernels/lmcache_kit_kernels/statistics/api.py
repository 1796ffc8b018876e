"""From quantizer symbols to coded symbols and a table per channel, and back.

With integers throughout, for a channel of T tokens::

    centre    = (2 * sum of symbols + T) // (2 * T)               its mean symbol; 0 where symbols are centred already
    d[t]      = symbol[t] - centre                                 centred: the symbol as a signed residue
    u[t]      = d[t] mod levels                                    plain form
    v[t]      = u[t] where t % g == 0, else (u[t] - u[t - t % g]) mod levels
                                                                   delta form, for an anchor group g
    flag      = sum |v| < sum |d|                                  |v|: of the signed residue, min(v, levels - v)
    spread    = 1024 * (sum |v| if flag else sum |d|) // T
    largest   = the largest of the same magnitudes
    table     = max(#{i: spread >= thresholds[i]}, cover[min(largest, levels // 2)])

Anchor and delta follow the paper (CacheGen, SIGCOMM 2024), applied to symbols and only where it pays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lmcache_kit_kernels.backends import implementation
from lmcache_kit_kernels.tables import TableSet

__all__ = ["MAX_TOKENS", "Channels", "check_tokens", "fit", "restore"]

Array = np.ndarray[Any, np.dtype[Any]]

MAX_TOKENS = 1 << 16
"""Most tokens of a block: 1024 times a channel's magnitudes still sums to less than 2**32."""


@dataclass(frozen=True, slots=True, eq=False)
class Channels:
    """What :func:`fit` finds.

    Args:
        centres: uint8 ``[B, C]`` below the levels.
        tables: uint8 ``[B, C]`` below 32.
        flags: bool ``[B, C]``, channels in delta form; None without an anchor group.
        coded: uint8 ``[B, T, C]`` below the levels, the symbols to be entropy coded. Each channel's table has them.
    """

    centres: Array
    tables: Array
    flags: Array | None
    coded: Array


def check_tokens(tokens: int) -> None:
    """Raises ValueError for a number of tokens that sums are not made for."""
    if not 1 <= tokens <= MAX_TOKENS:
        raise ValueError(f"a block has 1 to {MAX_TOKENS} tokens, not {tokens}")


def fit(symbols: Array, tables: TableSet, *, centred: bool, anchor_group: int = 0, backend: str = "numpy") -> Channels:
    """Centre, form and table of every channel, and the symbols in that form.

    Args:
        symbols: uint8 ``[B, T, C]`` below ``tables.levels``, T from 1 to 65,536; the caller vouches for the bound.
        tables: the tables to choose from.
        centred: the symbols are residues about zero, so the centre is 0. Otherwise they are 0 to levels - 1 with the
            mean anywhere.
        anchor_group: tokens per anchor, 0 for none.
        backend: ``numpy`` or ``xla``; all agree.
    """
    _check(symbols, anchor_group)
    centres, chosen, flags, coded = implementation("statistics", backend).fit(symbols, tables, centred, anchor_group)
    return Channels(centres, chosen, flags if anchor_group else None, coded)


def restore(
    coded: Array,
    centres: Array,
    flags: Array | None,
    levels: int,
    *,
    anchor_group: int = 0,
    backend: str = "numpy",
) -> Array:
    """The symbols uint8 ``[B, T, C]`` that :func:`fit` was given. Whatever is below ``levels`` stays below it."""
    _check(coded, anchor_group)
    if (flags is None) == bool(anchor_group):
        raise ValueError("flags and an anchor group come together")
    symbols: Array = implementation("statistics", backend).restore(coded, centres, flags, levels, anchor_group)
    return symbols


def _check(symbols: Array, anchor_group: int) -> None:
    if symbols.ndim != 3 or symbols.dtype != np.uint8:
        raise ValueError(f"symbols must be uint8 [B, T, C], got {symbols.dtype} {symbols.shape}")
    check_tokens(symbols.shape[1])
    if anchor_group < 0:
        raise ValueError(f"an anchor group has at least one token (0: no anchors), got {anchor_group}")
