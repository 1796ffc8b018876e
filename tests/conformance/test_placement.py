"""Our placement policies keep the contract; what each decides is tested in tests/unit/builtin."""

from __future__ import annotations

import pytest

from lmcache_kit.testing import PlacementTests


class TestBroadcast(PlacementTests):
    @pytest.fixture
    def plugin(self):
        return "broadcast"


class TestWriteBack(PlacementTests):
    @pytest.fixture
    def plugin(self):
        return "write_back"


class TestDemote(PlacementTests):
    @pytest.fixture
    def plugin(self):
        return "demote"
