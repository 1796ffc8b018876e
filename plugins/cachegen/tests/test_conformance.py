"""The method keeps the contract."""

from __future__ import annotations

import pytest

from lmcache_kit.testing import CompressionMethodTests


class TestCachegen(CompressionMethodTests):
    @pytest.fixture
    def plugin(self):
        return "cachegen"
