"""The method keeps the contract."""

from __future__ import annotations

import pytest
from lmcache_kit_echo.plugin import lmcache_kit_compression_methods

from lmcache_kit.testing import CompressionMethodTests


class TestEcho(CompressionMethodTests):
    @pytest.fixture
    def plugin(self):
        (record,) = lmcache_kit_compression_methods()
        return record
