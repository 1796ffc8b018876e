"""How a plugin compares with the built-in ones of its kind, one module of figures per kind."""

from lmcache_kit.testing.comparison.table import KINDS, Comparison, Row, compare

__all__ = ["KINDS", "Comparison", "Row", "compare"]
