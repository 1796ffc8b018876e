"""The pytest plugin of the suites. It registers their markers and nothing else: no fixture, hook or option."""

from __future__ import annotations

import pytest

__all__ = ["MARKERS", "REWRITTEN"]

MARKERS = (
    "capability(name): a suite's test of what a plugin does that declares this capability; skipped for others",
    "ability(protocol): a suite's test of an optional protocol of the contract; skipped for plugins without it",
)

# The suites assert in modules that pytest does not collect; without this they would fail without saying what differed.
REWRITTEN = ("lmcache_kit.testing.suites",)
pytest.register_assert_rewrite(*REWRITTEN)


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
