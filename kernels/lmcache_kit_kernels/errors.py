"""Errors of the kernels."""

from __future__ import annotations

__all__ = ["CorruptStreamError"]


class CorruptStreamError(ValueError):
    """Coded data contradicts itself: it was not written by an encoder of this package, or was damaged since."""
