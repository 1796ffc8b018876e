"""What a check answers, and how one is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from lmcache_kit.errors import LMCacheKitError

__all__ = ["Check", "CheckResult", "Skipped", "require", "run_check"]

Check = Callable[[], str]
"""Does one thing; returns a fact worth showing (or nothing), raises AssertionError with what is wrong."""

Checks = Iterator[tuple[str, Check]]


class CheckResult(msgspec.Struct, frozen=True):
    """One line of the answer.

    Args:
        check: what was checked.
        outcome: ``skipped`` says in ``detail`` why.
        detail: what was found.
    """

    check: str
    outcome: Literal["passed", "failed", "skipped"]
    detail: str


class Skipped(Exception):  # noqa: N818  (an outcome, not an error)
    """The check does not apply; its text says why."""


def require(condition: bool, what: str) -> None:
    """Raise AssertionError saying ``what`` unless ``condition`` holds; in optimised Python too."""
    if not condition:
        raise AssertionError(what)


def run_check(name: str, check: Check) -> CheckResult:
    """Run one check; whatever a plugin raises becomes a line."""
    try:
        return CheckResult(name, "passed", check())
    except Skipped as reason:
        return CheckResult(name, "skipped", str(reason))
    except AssertionError as wrong:
        return CheckResult(name, "failed", str(wrong) or "an assertion of the plugin failed")
    except LMCacheKitError as error:
        return CheckResult(name, "failed", f"{type(error).__name__}: {error.detail}")
    except Exception as error:  # third-party code
        return CheckResult(name, "failed", f"{type(error).__name__}: {error}")
