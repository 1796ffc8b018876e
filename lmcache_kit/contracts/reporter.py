"""Reporters: a finished run's report as text or as a file.

A reporter is called once, from one thread, when the run has ended.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

__all__ = ["Reporter"]


class Reporter(ABC):
    """One way to show a report (docs/reference/report.md describes the report object)."""

    file_name: ClassVar[str | None] = None
    """File that it becomes in the output directory, or None when it is only for the terminal."""

    @abstractmethod
    def render(self, report: Mapping[str, Any]) -> str:
        """The report as text; a pure function of the report."""
