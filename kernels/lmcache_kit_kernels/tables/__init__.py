"""Shared frequency tables, and which of them fits a channel."""

from lmcache_kit_kernels.tables.prototypes import builtin_tables, builtin_tables_by_levels
from lmcache_kit_kernels.tables.table_set import (
    ALPHABETS,
    FINGERPRINT_BYTES,
    NUM_TABLES,
    PROBABILITY_BITS,
    SPREAD_UNIT,
    UNIT_GAIN,
    TableSet,
    choose,
    decoding_table,
)

__all__ = [
    "ALPHABETS",
    "FINGERPRINT_BYTES",
    "NUM_TABLES",
    "PROBABILITY_BITS",
    "SPREAD_UNIT",
    "UNIT_GAIN",
    "TableSet",
    "builtin_tables",
    "builtin_tables_by_levels",
    "choose",
    "decoding_table",
]
