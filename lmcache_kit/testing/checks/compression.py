"""Compression methods: what goes in comes out, exactly or nearly, and damage is noticed or harmless."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lmcache_kit.contracts.compression import CompressionMethod, SupportsBatches, SupportsLayerwise
from lmcache_kit.contracts.records import CompressionPlugin, Options
from lmcache_kit.errors import BlobError, ConfigError, InvalidRequestError, UnavailableError
from lmcache_kit.kv.layout import KVLayout, KVTensor
from lmcache_kit.testing.checks.result import CheckResult, Checks, Skipped, require, run_check

__all__ = ["run"]

_LAYOUTS = [
    KVLayout(4, 2, 64, "bfloat16"),
    KVLayout(4, 2, 64, "float16"),
    KVLayout(4, 2, 64, "float32"),
    KVLayout(3, 1, 40, "bfloat16", planes=1),
    KVLayout(2, 3, 5, "float16"),
    KVLayout(1, 1, 1, "float32"),
]
_TOKENS = (1, 7, 256)
_SMALL = KVLayout(2, 2, 16, "bfloat16")


def run(record: CompressionPlugin, options: Options) -> list[CheckResult]:
    made: list[CompressionMethod] = []

    def make() -> str:
        try:
            made.append(record.factory(options))
        except (UnavailableError, ConfigError) as error:
            raise Skipped(f"it cannot be used here: {error.detail}") from None
        require(isinstance(made[0], CompressionMethod), "the factory did not make a CompressionMethod")
        return f"{type(made[0]).__name__} on {made[0].device}"

    first = run_check("made", make)
    if first.outcome != "passed":
        return [first]
    subject = _Subject(record, options, made[0])
    return [first, *(run_check(name, check) for name, check in subject.checks())]


class _Subject:
    def __init__(self, record: CompressionPlugin, options: Options, method: CompressionMethod) -> None:
        self._record, self._options, self._method = record, options, method
        self._lossless = "lossless" in record.capabilities

    def checks(self) -> Checks:
        for layout in _LAYOUTS:
            shape = f"{layout.num_layers}x{layout.planes}xTx{layout.num_kv_heads}x{layout.head_dim}"
            yield f"round trip {layout.dtype} {shape}", functools.partial(self.round_trip, layout)
        yield "NaN, infinities, subnormals", self.special
        yield "zeros, constants, extremes", self.extremes
        yield "deterministic", self.deterministic
        yield "truncated payloads", self.truncated
        yield "changed payloads", self.changed
        yield "unknown version", self.version
        yield "several threads", self.threads
        yield "layer by layer", self.layers
        yield "several in one call", self.batches

    def decode(self, payload: object, layout: KVLayout, num_tokens: int) -> KVTensor:
        # One byte in front: a payload inside a blob is not aligned either.
        view = memoryview(b"\0" + bytes(payload))[1:]  # type: ignore[call-overload]
        kv = self._method.decode(view, layout, num_tokens, self._method.version)
        require(kv.layout == layout and kv.num_tokens == num_tokens, "the decoded KV has another layout or length")
        return kv

    def round_trip(self, layout: KVLayout) -> str:
        worst = mean = 0.0
        for num_tokens in _TOKENS:
            kv = _normal(layout, num_tokens)
            before = bytes(kv.tobytes_view())
            try:
                payload = bytes(self._method.encode(kv))
            except InvalidRequestError as error:
                if self._lossless:
                    raise
                raise Skipped(f"refused: {error.message}") from None
            require(bytes(kv.tobytes_view()) == before, "encode changed the KV that it was given")
            decoded = self.decode(payload, layout, num_tokens)
            require(
                not self._lossless or bytes(decoded.tobytes_view()) == before,
                f"declared lossless, but {num_tokens} tokens do not come back bit for bit",
            )
            exact, error_ = kv.data.astype(np.float64), np.abs(decoded.data.astype(np.float64) - kv.data)
            worst = max(worst, float(error_.max()))
            mean = float(np.sqrt(np.square(error_).mean() / np.square(exact).mean()))
        ratio = f"{kv.nbytes / max(1, len(payload)):.2f} times smaller"
        if self._lossless:
            return f"exact, {ratio}"
        require(mean < 1, f"the error is as large as the KV itself (relative RMS {mean:.3g})")
        return f"relative RMS error {mean:.2%}, largest error {worst:.3g} of unit normal, {ratio}"

    def special(self) -> str:
        raw = np.random.default_rng(1).integers(0, 256, _SMALL.nbytes(9), dtype=np.uint8)
        kv = KVTensor.from_bytes(raw, _SMALL, 9)
        try:
            payload = bytes(self._method.encode(kv))
        except InvalidRequestError as error:
            require(not self._lossless, f"declared lossless, but refuses: {error.message}")
            return f"refused: {error.message}"
        decoded = self.decode(payload, _SMALL, 9)
        require(
            not self._lossless or bytes(decoded.tobytes_view()) == raw.tobytes(),
            "declared lossless, but random bits do not come back",
        )
        return "any bits come back" if self._lossless else "accepted"

    def extremes(self) -> str:
        for dtype in ("bfloat16", "float16", "float32"):
            layout = KVLayout(2, 2, 16, dtype)
            largest = np.frombuffer(
                {"bfloat16": b"\x7f\x7f", "float16": b"\xff\x7b", "float32": b"\xff\xff\x7f\x7f"}[dtype],
                dtype=layout.np_dtype,
            )[0]
            for value in (0.0, -0.0, 1.0, -3.25, largest, -largest):
                kv = KVTensor(layout, np.full(layout.shape(5), value, dtype=layout.np_dtype))
                try:
                    decoded = self.decode(self._method.encode(kv), layout, 5)
                except InvalidRequestError:
                    require(not self._lossless, f"declared lossless, but refuses {dtype} {value}")
                    continue
                finite = np.isfinite(decoded.data.astype(np.float64)).all()
                require(bool(finite), f"{dtype} {value} decodes to something that is not finite")
        return ""

    def deterministic(self) -> str:
        if "deterministic" not in self._record.capabilities:
            raise Skipped("not declared")
        kv = _normal(_SMALL, 33)
        once = bytes(self._method.encode(kv))
        require(bytes(self._method.encode(kv)) == once, "the same KV encodes differently the second time")
        other = bytes(self._record.factory(self._options).encode(kv))
        require(other == once, "the same KV encodes differently by another object")
        return ""

    def truncated(self) -> str:
        payload = bytes(self._method.encode(_normal(_SMALL, 8)))
        cuts = sorted({0, 1, 2, 3, len(payload) // 2, len(payload) - 1} & set(range(len(payload))))
        for cut in cuts:
            try:
                self._method.decode(memoryview(payload)[:cut], _SMALL, 8, self._method.version)
            except BlobError:
                continue
            raise AssertionError(f"the first {cut} of {len(payload)} bytes decode without a BlobError")
        return f"BlobError at {len(cuts)} lengths"

    def changed(self) -> str:
        payload = bytes(self._method.encode(_normal(_SMALL, 8)))
        rng, noticed, tries = np.random.default_rng(2), 0, 200
        for attempt in range(tries):
            damaged = bytearray(payload)
            # The beginning, where headers and lengths are, gets half of the damage.
            reach = min(len(payload), 32) if attempt % 2 else len(payload)
            damaged[int(rng.integers(reach))] ^= 1 << int(rng.integers(8))
            try:
                self.decode(damaged, _SMALL, 8)
            except BlobError:
                noticed += 1
        return f"{noticed} of {tries} noticed by the method; the blob's checksum notices all"

    def version(self) -> str:
        payload = bytes(self._method.encode(_normal(_SMALL, 3)))
        try:
            self._method.decode(memoryview(payload), _SMALL, 3, 65535)
        except BlobError:
            return ""
        raise AssertionError("a payload of version 65535 decodes without a BlobError")

    def threads(self) -> str:
        kv = _normal(_SMALL, 64)
        want = bytes(self.decode(self._method.encode(kv), _SMALL, 64).tobytes_view())
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: self.decode(self._method.encode(kv), _SMALL, 64), range(16)))
        require(
            "deterministic" not in self._record.capabilities
            or all(bytes(answer.tobytes_view()) == want for answer in answers),
            "answers differ between threads",
        )
        return "4 threads"

    def layers(self) -> str:
        if not isinstance(self._method, SupportsLayerwise):
            raise Skipped("not offered")
        payload = memoryview(bytes(self._method.encode(_normal(_SMALL, 6))))
        whole = self._method.decode(payload, _SMALL, 6, self._method.version)
        parts = list(self._method.decode_layers(payload, _SMALL, 6, self._method.version))
        require(len(parts) == _SMALL.num_layers, f"{len(parts)} layers, not {_SMALL.num_layers}")
        joined = b"".join(bytes(part.tobytes_view()) for part in parts)
        require(joined == bytes(whole.tobytes_view()), "the layers differ from the whole")
        return ""

    def batches(self) -> str:
        if not isinstance(self._method, SupportsBatches):
            raise Skipped("not offered")
        if "deterministic" not in self._record.capabilities:
            raise Skipped("the bytes of a method that is not deterministic cannot be compared")
        lengths = [7, 1, 33, 7, 0]
        kvs = [_normal(_SMALL, num_tokens) for num_tokens in lengths]
        payloads = [bytes(payload) for payload in self._method.encode_many(kvs)]
        require(
            payloads == [bytes(self._method.encode(kv)) for kv in kvs],
            "tensors encoded in one call have other bytes than those encoded one by one",
        )
        views = [memoryview(payload) for payload in payloads]
        together = self._method.decode_many(views, _SMALL, lengths, self._method.version)
        require(len(together) == len(kvs), f"{len(together)} tensors decoded, not {len(kvs)}")
        for kv, payload, num_tokens in zip(together, payloads, lengths, strict=True):
            alone = self.decode(payload, _SMALL, num_tokens)
            require(
                kv.layout == _SMALL and bytes(kv.tobytes_view()) == bytes(alone.tobytes_view()),
                "tensors decoded in one call have other values than those decoded one by one",
            )
        require(self._method.encode_many([]) == [], "no tensors at all encode to something")
        if len(views[0]):
            try:
                self._method.decode_many([views[2], views[0][:-1]], _SMALL, [33, 7], self._method.version)
            except BlobError:
                return f"{len(kvs)} tensors"
            raise AssertionError("a truncated payload among others decodes without a BlobError")
        return f"{len(kvs)} tensors"


def _normal(layout: KVLayout, num_tokens: int) -> KVTensor:
    data = np.random.default_rng(0).standard_normal(layout.shape(num_tokens))
    return KVTensor(layout, data.astype(layout.np_dtype))
