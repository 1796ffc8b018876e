"""Payloads that nobody encoded: cut, damaged, noise, of another shape or version."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache_kit.errors import BlobError
from lmcache_kit.kv.layout import KVLayout, KVTensor
from lmcache_kit.testing.strategies import damaged
from lmcache_kit.testing.suites.base import examples, refusal
from lmcache_kit.testing.suites.compression_base import CompressionTestsBase
from lmcache_kit.testing.suites.compression_codec import Codec, Damage, bits, surrounded

__all__ = ["DamagedPayloadTests"]


class DamagedPayloadTests(CompressionTestsBase):
    """Damage is a BlobError or harmless; a part of :class:`CompressionMethodTests`."""

    def outcome(self, codec: Codec, view: memoryview, layout: KVLayout, num_tokens: int) -> Damage:
        """What comes of a payload: BlobError or a tensor of the layout asked for, and nothing else."""
        try:
            return Damage(bits(codec.decode_as(view, layout, num_tokens)))
        except BlobError as error:
            refused = error
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} instead of BlobError: {error}") from error
        assert refused.message.strip(), "a BlobError without a message"
        return Damage(None)

    def test_a_truncated_payload_is_refused(self, codec: Codec, small: KVTensor, payload: bytes) -> None:
        if not payload:
            pytest.skip("the payload is empty")

        @examples(40)
        @given(st.integers(0, len(payload) - 1))
        def check(cut: int) -> None:
            # The missing bytes are there, right behind the view: nobody may look.
            view = memoryview(b"!" + payload)[1 : 1 + cut]
            found = self.outcome(codec, view, small.layout, small.num_tokens)
            assert found.kv is None, f"the first {cut} of {len(payload)} bytes decode without a BlobError"

        check()

    def test_bytes_after_a_payload_are_refused(self, codec: Codec, small: KVTensor, payload: bytes) -> None:
        @examples(20)
        @given(st.binary(min_size=1, max_size=20))
        def check(more: bytes) -> None:
            found = self.outcome(codec, surrounded(payload + more, 0), small.layout, small.num_tokens)
            assert found.kv is None, f"a payload and {len(more)} bytes that nobody encoded decode without a BlobError"

        check()

    def test_a_damaged_payload_is_refused_or_stays_a_tensor(
        self, codec: Codec, small: KVTensor, payload: bytes, record_property: Callable[[str, object], None]
    ) -> None:
        if not payload:
            pytest.skip("the payload is empty")
        noticed = [0, 0]

        @examples(200)
        @given(damaged(payload))
        def check(broken: bytes) -> None:
            found = [
                self.outcome(codec, surrounded(broken, guard), small.layout, small.num_tokens) for guard in (0, 255)
            ]
            assert found[0] == found[1], "what a damaged payload decodes to depends on bytes outside of it"
            noticed[found[0].kv is None] += 1

        check()
        record_property("detail", f"{noticed[1]} of {sum(noticed)} noticed; the blob's checksum notices all")

    def test_noise_is_refused_or_stays_a_tensor(self, codec: Codec, small: KVTensor) -> None:
        @examples(60)
        @given(st.binary(max_size=400), st.integers(0, 9))
        def check(noise: bytes, num_tokens: int) -> None:
            found = [self.outcome(codec, surrounded(noise, guard), small.layout, num_tokens) for guard in (0, 255)]
            assert found[0] == found[1], "what noise decodes to depends on bytes outside of it"

        check()

    def test_a_payload_of_another_shape_is_refused_or_stays_a_tensor(
        self, codec: Codec, small: KVTensor, payload: bytes
    ) -> None:
        layout = small.layout
        shapes = [
            KVLayout(layout.num_layers + 1, layout.num_kv_heads, layout.head_dim, layout.dtype, layout.planes),
            KVLayout(layout.num_layers, layout.head_dim, layout.num_kv_heads, layout.dtype, layout.planes),
            KVLayout(layout.num_layers, layout.num_kv_heads, layout.head_dim, layout.dtype, 3 - layout.planes),
            KVLayout(layout.num_layers, layout.num_kv_heads, layout.head_dim * 3, layout.dtype, layout.planes),
        ]
        view = surrounded(payload, 0)
        for num_tokens in (0, 1, small.num_tokens - 1, small.num_tokens + 1, 2 * small.num_tokens):
            self.outcome(codec, view, layout, num_tokens)
        for shape in shapes:
            self.outcome(codec, view, shape, small.num_tokens)

    def test_a_later_version_is_refused(self, codec: Codec, small: KVTensor, payload: bytes) -> None:
        method = codec.method
        for version in (method.version + 1, 65_535):
            refusal(
                functools.partial(method.decode, memoryview(payload), small.layout, small.num_tokens, version),
                BlobError,
            )
