"""What some compression methods can do: decode by layers, work on batches, learn from samples."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lmcache_kit.contracts.compression import SupportsBatches, SupportsFitting, SupportsLayerwise
from lmcache_kit.errors import BlobError, ConfigError, InvalidRequestError
from lmcache_kit.kv.layout import KVLayout, KVTensor
from lmcache_kit.testing.strategies import damaged
from lmcache_kit.testing.suites.base import examples, refusal
from lmcache_kit.testing.suites.compression_base import CompressionTestsBase
from lmcache_kit.testing.suites.compression_codec import Codec, bits, normal, surrounded

__all__ = ["OptionalAbilityTests"]


class OptionalAbilityTests(CompressionTestsBase):
    """The optional protocols; a part of :class:`CompressionMethodTests`."""

    @pytest.mark.ability.with_args(SupportsLayerwise)
    def test_layers_are_those_of_the_whole(self, codec: Codec) -> None:
        method: Any = codec.method

        @examples(40)
        @given(self.kv_of_models)
        def check(kv: KVTensor) -> None:
            payload = codec.encode(kv)
            assume(payload is not None)
            assert payload is not None
            whole, view = codec.decode(payload, kv), surrounded(payload, 0)
            one = KVLayout(1, kv.layout.num_kv_heads, kv.layout.head_dim, kv.layout.dtype, kv.layout.planes)
            begun = method.decode_layers(view, kv.layout, kv.num_tokens, method.version)
            next(begun)  # a reader that stops early disturbs nobody
            parts = list(method.decode_layers(view, kv.layout, kv.num_tokens, method.version))
            assert len(parts) == kv.layout.num_layers, f"{len(parts)} layers, want {kv.layout.num_layers}"
            for layer, part in enumerate(parts):
                codec.checked(part, one, kv.num_tokens)
                want = KVTensor(one, whole.data[layer : layer + 1])
                assert bits(part) == bits(want), f"layer {layer} by itself differs from layer {layer} of the whole"

        check()

    @pytest.mark.ability.with_args(SupportsLayerwise)
    def test_layers_of_a_damaged_payload_are_refused_where_the_whole_is(
        self, codec: Codec, small: KVTensor, payload: bytes
    ) -> None:
        if not payload:
            pytest.skip("the payload is empty")
        method: Any = codec.method

        @examples(60)
        @given(damaged(payload))
        def check(broken: bytes) -> None:
            view = surrounded(broken, 0)
            try:
                whole = codec.decode_as(view, small.layout, small.num_tokens)
            except BlobError:
                refusal(lambda: list(method.decode_layers(*arguments(view))), BlobError)
                return
            parts = list(method.decode_layers(*arguments(view)))
            assert b"".join(bits(part) for part in parts) == bits(whole), "the layers differ from the whole"

        def arguments(view: memoryview) -> tuple[Any, ...]:
            return view, small.layout, small.num_tokens, method.version

        check()

    @pytest.mark.ability.with_args(SupportsBatches)
    def test_many_at_once_are_those_of_one_by_one(self, codec: Codec) -> None:
        method: Any = codec.method

        @examples(25)
        @given(st.lists(self.kv_of_models, max_size=4))
        def check(kvs: list[KVTensor]) -> None:
            before = [bits(kv) for kv in kvs]
            alone = [codec.encode(kv) for kv in kvs]
            if any(payload is None for payload in alone):
                refusal(lambda: method.encode_many(kvs), InvalidRequestError)
                return
            together = [bytes(payload) for payload in method.encode_many(kvs)]
            assert [bits(kv) for kv in kvs] == before, "encode_many changed the KV that it was given"
            assert len(together) == len(kvs)
            assert not codec.deterministic or together == alone, "encode_many answers other bytes than encode"
            for payload, kv in zip(together, kvs, strict=True):
                assert not codec.lossless or bits(codec.decode(payload, kv)) == bits(kv)

        check()

    @pytest.mark.ability.with_args(SupportsBatches)
    def test_many_are_decoded_as_one_by_one(self, codec: Codec, small: KVTensor) -> None:
        method: Any = codec.method

        @examples(25)
        @given(st.lists(st.integers(1, 40), max_size=5), st.integers(0, 2**32 - 1))
        def check(lengths: list[int], seed: int) -> None:
            kvs = [normal(small.layout, length, seed + place) for place, length in enumerate(lengths)]
            payloads = [codec.encode(kv) for kv in kvs]
            assert None not in payloads, "the method refuses unit normal KV of another length"
            views = [surrounded(payload or b"", 0) for payload in payloads]
            answers = method.decode_many(views, small.layout, lengths, method.version)
            assert len(answers) == len(kvs)
            for answer, payload, kv in zip(answers, payloads, kvs, strict=True):
                codec.checked(answer, kv.layout, kv.num_tokens)
                alone = codec.decode(payload or b"", kv)
                assert bits(answer) == bits(alone), "decode_many answers something else than decode"
            if views and len(views[-1]):
                cut = [*views[:-1], views[-1][:-1]]
                refusal(lambda: method.decode_many(cut, small.layout, lengths, method.version), BlobError)

        check()

    @pytest.mark.ability.with_args(SupportsFitting)
    def test_fitting_learns_from_samples_and_leaves_them_alone(self, codec: Codec, small: KVTensor) -> None:
        method: Any = codec.method
        samples = [normal(small.layout, 64, seed) for seed in range(3)]
        before = [bits(kv) for kv in samples]
        try:
            profile = method.fit(iter(samples))
        except ConfigError as error:
            pytest.skip(f"nothing to fit with these options: {error.detail}")
        assert isinstance(profile, bytes)
        assert profile, "fit answers an empty profile"
        assert [bits(kv) for kv in samples] == before, "fit changed a sample"
        if codec.deterministic:
            assert method.fit(iter(samples)) == profile, "the same samples give another profile the second time"
        refusal(lambda: method.fit(iter(())), InvalidRequestError)
