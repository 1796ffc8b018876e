"""How much the suites try."""

from __future__ import annotations

from contextvars import ContextVar

from hypothesis import Phase, settings

__all__ = ["EXAMPLES", "SEARCH_ONLY", "SHRINKS", "scaled"]

EXAMPLES: ContextVar[int | None] = ContextVar("EXAMPLES", default=None)
"""Overrides ``max_examples`` of hypothesis's profile while ``plugins check`` runs a suite."""

SHRINKS: ContextVar[bool] = ContextVar("SHRINKS", default=True)
"""Whether a failing example is made smaller. It takes up to five minutes for each property, by chance."""

SEARCH_ONLY = (Phase.explicit, Phase.reuse, Phase.generate, Phase.target)
"""Hypothesis's phases for where SHRINKS is False."""

# Hypothesis's own default; a profile with ten times as many tries ten times as many of ours.
_USUAL = 100


def scaled(number: int) -> int:
    """``number`` under hypothesis's default profile, more or fewer in proportion under others; at least 1."""
    override = EXAMPLES.get()
    return max(1, round(number * (settings().max_examples if override is None else override) / _USUAL))
