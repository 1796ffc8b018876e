"""What goes into a compression method comes out, exactly or nearly, and the same every time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import assume, given

from lmcache_kit.contracts.compression import CompressionMethod
from lmcache_kit.contracts.records import CompressionPlugin, Options
from lmcache_kit.kv.layout import KVLayout, KVTensor
from lmcache_kit.testing.strategies import kv_tensors
from lmcache_kit.testing.suites.base import examples
from lmcache_kit.testing.suites.compression_base import USUAL_LAYOUTS, CompressionTestsBase, ErrorBound
from lmcache_kit.testing.suites.compression_codec import Codec, bits, encoded_elsewhere, normal, wide

__all__ = ["RoundTripTests"]


class RoundTripTests(CompressionTestsBase):
    """What comes out, and that it is the same every time; a part of :class:`CompressionMethodTests`."""

    def test_version_and_device_can_be_stored_and_shown(self, subject: CompressionMethod) -> None:
        assert isinstance(subject.version, int)
        assert 0 <= subject.version <= 65_535, f"version {subject.version} does not fit the 16 bits of a blob's header"
        assert isinstance(subject.device, str)
        assert subject.device

    # -- what comes out --------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "layout", USUAL_LAYOUTS, ids=lambda layout: f"{layout.dtype}-{layout.shape('T')}".replace("'", "")
    )
    def test_kv_of_usual_layouts_comes_back(
        self, codec: Codec, layout: KVLayout, record_property: Callable[[str, object], None]
    ) -> None:
        relative, ratio = 0.0, 0.0
        for num_tokens in (1, 7, 256):
            kv = normal(layout, num_tokens)
            payload = codec.encode(kv)
            if payload is None:
                pytest.skip(f"refused: {codec.refused}")
            decoded = codec.decode(payload, kv)
            exact, error = wide(kv), wide(decoded) - wide(kv)
            relative = float(np.sqrt(np.square(error).mean() / np.square(exact).mean()))
            ratio = kv.nbytes / max(1, len(payload))
            assert not codec.lossless or bits(decoded) == bits(kv), (
                f"declared lossless, but {num_tokens} tokens do not come back bit for bit"
            )
            assert relative < 1, f"the error is as large as the KV itself (relative RMS {relative:.3g})"
        said = "exact" if codec.lossless else f"relative RMS error {relative:.2%}"
        record_property("detail", f"{said}, {ratio:.2f} times smaller")

    @pytest.mark.capability("lossless")
    def test_every_bit_comes_back(self, codec: Codec) -> None:
        @examples(80)
        @given(self.kv_of_any_bits)
        def check(kv: KVTensor) -> None:
            payload = codec.encode(kv)
            assert payload is not None
            assert bits(codec.decode(payload, kv)) == bits(kv), "declared lossless, but some bits do not come back"

        check()

    def test_kv_of_models_comes_back_finite(self, codec: Codec) -> None:
        @examples(60)
        @given(self.kv_of_models)
        def check(kv: KVTensor) -> None:
            payload = codec.encode(kv)
            assume(payload is not None)
            assert payload is not None
            decoded = codec.decode(payload, kv)
            assert np.isfinite(wide(decoded)).all(), "finite KV decodes to NaN or infinities"
            assert not codec.lossless or bits(decoded) == bits(kv), "declared lossless, but bits do not come back"

        check()

    def test_the_error_stays_within_what_is_promised(self, codec: Codec, request: pytest.FixtureRequest) -> None:
        if codec.lossless:
            pytest.skip("declared lossless: there is no error to bound")
        bound: ErrorBound = request.getfixturevalue("error_bound")

        @examples(80)
        @given(self.kv_of_models)
        def check(kv: KVTensor) -> None:
            payload = codec.encode(kv)
            assume(payload is not None)
            assert payload is not None
            exact = wide(kv)
            error = np.abs(wide(codec.decode(payload, kv)) - exact)
            over = error > bound(exact, kv.layout)
            assert not over.any(), (
                f"{int(over.sum())} of {error.size} values are further off than promised, the first is "
                f"{exact[over][0]:.6g} and off by {error[over][0]:.3g}"
            )

        check()

    def test_special_values_come_back_or_are_refused(self, codec: Codec) -> None:
        @examples(40)
        @given(kv_tensors(max_tokens=9, special=True))
        def check(kv: KVTensor) -> None:
            payload = codec.encode(kv)  # a refusal gives its reason
            if payload is not None:
                decoded = codec.decode(payload, kv)
                assert not codec.lossless or bits(decoded) == bits(kv)

        check()

    def test_no_tokens_at_all(self, codec: Codec, small: KVTensor) -> None:
        empty = normal(small.layout, 0)
        payload = codec.encode(empty)
        if payload is None:
            pytest.skip("refused: KV of no tokens")
        assert codec.decode(payload, empty).num_tokens == 0

    # -- the same every time ---------------------------------------------------------------------------------------

    def test_a_payload_decodes_to_the_same_every_time(
        self, codec: Codec, record: CompressionPlugin, made_options: Options
    ) -> None:
        other = Codec(record.factory(made_options), record)

        @examples(30)
        @given(self.kv_of_models, self.kv_of_models)
        def check(kv: KVTensor, between: KVTensor) -> None:
            payload = codec.encode(kv)
            assume(payload is not None)
            assert payload is not None
            want = bits(codec.decode(payload, kv))
            middle = codec.encode(between)
            if middle is not None:
                codec.decode(middle, between)
            assert bits(codec.decode(payload, kv)) == want, "a payload decodes to something else the second time"
            assert bits(other.decode(payload, kv)) == want, "another object decodes the payload to something else"

        check()

    @pytest.mark.capability("deterministic")
    def test_the_same_kv_gives_the_same_bytes(
        self, codec: Codec, record: CompressionPlugin, made_options: Options
    ) -> None:
        other = Codec(record.factory(made_options), record)

        @examples(30)
        @given(self.kv_of_models, self.kv_of_models)
        def check(kv: KVTensor, between: KVTensor) -> None:
            once = codec.encode(kv)
            codec.encode(between)
            assert codec.encode(kv) == once, "the same KV encodes to other bytes the second time"
            assert other.encode(kv) == once, "the same KV encodes to other bytes by another object"
            copied = KVTensor(kv.layout, kv.data.copy())
            assert codec.encode(copied) == once, "a copy of the KV encodes to other bytes"

        check()

    @pytest.mark.capability("deterministic")
    def test_another_process_gives_the_same_bytes(
        self, codec: Codec, small: KVTensor, payload: bytes, made_options: Options
    ) -> None:
        found = encoded_elsewhere(codec.record, made_options, small.layout, small.num_tokens)
        assert found == payload, "the same KV encodes to other bytes in another process"

    def test_later_calls_change_no_earlier_result(self, codec: Codec, small: KVTensor) -> None:
        """Scratch memory that is used again must not be what was handed out."""
        other = KVTensor(small.layout, -small.data)
        payload = codec.method.encode(small)
        kept = bytes(payload)
        codec.encode(other)
        assert bytes(payload) == kept, "a payload changed when other KV was encoded"
        decoded = codec.decode(kept, small)
        want = bits(decoded)
        codec.decode(codec.encode(other) or kept, small)
        assert bits(decoded) == want, "a decoded tensor changed when another payload was decoded"

    def test_decoding_leaves_the_payload_alone(self, codec: Codec, small: KVTensor, payload: bytes) -> None:
        writable = bytearray(payload)
        codec.decode_as(memoryview(writable), small.layout, small.num_tokens)
        assert bytes(writable) == payload, "decode changed the payload that it was given"

    def test_threads_get_the_answers_of_one(self, codec: Codec, small: KVTensor) -> None:
        kvs = [normal(small.layout, length, seed) for seed, length in enumerate((1, 5, 33, 64))]
        payloads = [codec.encode(kv) for kv in kvs]
        want = [
            bits(codec.decode(payload, kv)) for payload, kv in zip(payloads, kvs, strict=True) if payload is not None
        ]
        assert len(want) == len(kvs), "the method refuses unit normal KV of another length"

        def work(number: int) -> None:
            place = number % len(kvs)
            kv, payload = kvs[place], payloads[place]
            assert payload is not None
            again = codec.encode(kv)
            assert again is not None
            assert not codec.deterministic or again == payload, "a thread beside others encodes to other bytes"
            assert bits(codec.decode(payload, kv)) == want[place], "a thread beside others decodes to something else"
            assert not codec.lossless or bits(codec.decode(again, kv)) == bits(kv)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(48)))
