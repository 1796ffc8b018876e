"""What a mutant is: a plugin that is wrong in one way, and the tests of its kind's suite that must notice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lmcache_kit.contracts.records import Plugin

__all__ = ["Mutant"]


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One broken plugin.

    Args:
        record: the plugin; its name is the mutant's name.
        wrong: one line on what it does wrong.
        caught_by: tests of the suite of its kind that must fail, each of them.
        errors: types of errors, beside a failed assertion, that those tests may fail with.
        fixtures: values of further fixtures of the suite, by name.
    """

    record: Plugin
    wrong: str
    caught_by: tuple[str, ...]
    errors: tuple[str, ...] = ()
    fixtures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.record.name
