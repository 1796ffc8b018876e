"""What can be learned from finished runs: whether two agree, what a grid of them says, what happened when."""

from lmcache_kit.analysis.compare import compare_runs

__all__ = ["compare_runs"]
