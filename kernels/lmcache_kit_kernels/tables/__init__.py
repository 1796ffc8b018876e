"""Shared frequency tables, and which of them fits a channel."""

from lmcache_kit_kernels.tables.api import MAX_TOKENS, centre, fit, uncentre
from lmcache_kit_kernels.tables.prototypes import (
    NUM_TABLES,
    PROBABILITY_BITS,
    decoding_table,
    frequencies,
    symbol_costs,
)

__all__ = [
    "MAX_TOKENS",
    "NUM_TABLES",
    "PROBABILITY_BITS",
    "centre",
    "decoding_table",
    "fit",
    "frequencies",
    "symbol_costs",
    "uncentre",
]
