"""Our compression methods keep the contract."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from lmcache_kit.testing import CompressionMethodTests


class TestNaive(CompressionMethodTests):
    @pytest.fixture
    def plugin(self):
        return "naive"


class TestZstd(CompressionMethodTests):
    @pytest.fixture
    def plugin(self):
        return "zstd"


class TestZstdWithoutBytePlanes(TestZstd):
    @pytest.fixture
    def options(self):
        return {"shuffle": False}


class TestFp8(CompressionMethodTests):
    @pytest.fixture
    def plugin(self):
        return "fp8"

    @pytest.fixture
    def error_bound(self):
        def bound(exact, layout):
            """The documented one: 1/16 of the value, or 1/229376 of its vector's largest; and the type's rounding."""
            largest = np.maximum(np.abs(exact).max(axis=4, keepdims=True), 2.0**-118)
            smallest = float(ml_dtypes.finfo(layout.np_dtype).smallest_subnormal)
            return np.maximum(np.abs(exact) / 16, largest / 229376) + smallest / 2

        return bound
