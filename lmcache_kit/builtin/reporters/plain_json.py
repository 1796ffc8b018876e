"""The report as one JSON object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from lmcache_kit.contracts.reporter import Reporter

__all__ = ["JsonReporter"]


class JsonReporter(Reporter):
    """Indented JSON; ``report.json`` is written by the runner itself, so this has no file of its own."""

    def render(self, report: Mapping[str, Any]) -> str:
        return msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n"
