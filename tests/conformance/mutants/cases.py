"""One test class for each mutant of the kind that ``MUTANTS_KIND`` names, and for each sound plugin beside them.

Not collected by itself: ``mutants.suite_run`` gives this file to pytest.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from mutants.kinds import SUITES, mutants_of, sound_of
from mutants.mutant import Mutant

import lmcache_kit.testing


def _fixture(value: Any) -> Any:
    @pytest.fixture
    def give(self: Any) -> Any:
        return value

    return give


def _case(suite: type, mutant: Mutant) -> type:
    values = {"plugin": mutant.record, **mutant.fixtures}
    members: dict[str, Any] = {name: _fixture(value) for name, value in values.items()}
    return type(f"Test_{mutant.name}", (suite,), {"__module__": __name__, **members})


_KIND = os.environ["MUTANTS_KIND"]
_SUITE = getattr(lmcache_kit.testing, SUITES[_KIND])
globals().update({f"Test_{each.name}": _case(_SUITE, each) for each in (*sound_of(_KIND), *mutants_of(_KIND))})
