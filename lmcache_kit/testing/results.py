"""What a check of a plugin answers."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["CheckResult"]


class CheckResult(msgspec.Struct, frozen=True):
    """One line of the answer.

    Args:
        check: what was checked: the name of a suite's test.
        outcome: ``skipped`` says in ``detail`` why.
        detail: what was found.
    """

    check: str
    outcome: Literal["passed", "failed", "skipped"]
    detail: str
