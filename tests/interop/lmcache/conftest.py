"""Fixtures of the tests with real LMCache."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def peers(load_module: Callable[[str], ModuleType]) -> ModuleType:
    """The processes of both projects."""
    load_module("processes")
    return load_module("lmcache/peers")
