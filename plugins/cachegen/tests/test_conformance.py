"""The method keeps the contract, with the quantizer of its own and with LMCache's."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from lmcache_kit.testing import CompressionMethodTests


class TestCachegen(CompressionMethodTests):
    @pytest.fixture
    def plugin(self):
        return "cachegen"


class TestAnchors(TestCachegen):
    @pytest.fixture
    def options(self):
        return {"level": 2, "anchor_delta": True}


class TestTheQuantizerOfLMCache(TestCachegen):
    @pytest.fixture
    def options(self):
        return {"quantizer": "lmcache", "backend": "numpy"}

    @pytest.fixture
    def error_bound(self):
        """Half a step of 15 to either side, and the rounding of float32 and of the type."""

        def bound(exact, layout):
            largest = np.abs(exact).max(axis=(3, 4), keepdims=True)
            facts = ml_dtypes.finfo(layout.np_dtype)
            return largest / 30 + largest * (float(facts.eps) + 1e-5) + float(facts.smallest_subnormal)

        return bound
