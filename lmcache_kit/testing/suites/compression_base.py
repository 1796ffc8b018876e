"""What the suite of compression methods starts from: the method under test, and KV that it takes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import strategies as st

from lmcache_kit.contracts.compression import CompressionMethod
from lmcache_kit.contracts.records import CompressionPlugin
from lmcache_kit.kv.layout import KVLayout, KVTensor
from lmcache_kit.testing.strategies import any_bits, kv_tensors
from lmcache_kit.testing.suites.base import PluginTests
from lmcache_kit.testing.suites.compression_codec import Codec, normal

__all__ = ["USUAL_LAYOUTS", "CompressionTestsBase", "ErrorBound"]

ErrorBound = Callable[[npt.NDArray[np.float64], KVLayout], "npt.NDArray[np.float64] | float"]
"""From exact values ``[L, P, T, H, D]`` and their layout: the largest absolute error allowed, element by element."""

USUAL_LAYOUTS = [
    KVLayout(4, 2, 64, "bfloat16"),
    KVLayout(4, 2, 64, "float16"),
    KVLayout(4, 2, 64, "float32"),
    KVLayout(3, 1, 40, "bfloat16", planes=1),
    KVLayout(2, 3, 5, "float16"),
    KVLayout(1, 1, 1, "float32"),
]
_SMALL = [KVLayout(2, 2, 16, dtype) for dtype in ("bfloat16", "float16", "float32")]
_TOKENS = 8


class CompressionTestsBase(PluginTests):
    """Fixtures of the suite."""

    record_type = CompressionPlugin
    contract = CompressionMethod
    capabilities = frozenset({"lossless", "deterministic"})

    kv_of_models: st.SearchStrategy[KVTensor] = kv_tensors()
    """Finite KV that the method is tried with."""

    kv_of_any_bits: st.SearchStrategy[KVTensor] = any_bits()
    """KV with NaN, infinities and whatever else bits can say."""

    @pytest.fixture
    def error_bound(self) -> ErrorBound:
        """What the method promises of its error, as a function of exact values and layout."""
        pytest.skip("not given: a fixture `error_bound` that says what error the method promises")

    @pytest.fixture
    def codec(self, subject: CompressionMethod, record: CompressionPlugin) -> Codec:
        return Codec(subject, record)

    @pytest.fixture
    def small(self, codec: Codec) -> KVTensor:
        """Unit normal KV of a layout that the method takes."""
        for layout in (*_SMALL, *USUAL_LAYOUTS):
            kv = normal(layout, _TOKENS)
            if codec.encode(kv) is not None:
                return kv
        pytest.fail("the method refuses unit normal KV of every type and of every layout that was tried")

    @pytest.fixture
    def payload(self, codec: Codec, small: KVTensor) -> bytes:
        """A payload of ``small``."""
        payload = codec.encode(small)
        assert payload is not None, "the method refuses what it took before"
        return payload
