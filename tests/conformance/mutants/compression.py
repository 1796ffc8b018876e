"""Broken compression methods."""

from __future__ import annotations

import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from mutants.mutant import Mutant

from lmcache_kit.builtin.compression.fp8 import Fp8Method
from lmcache_kit.builtin.compression.naive import NaiveMethod
from lmcache_kit.builtin.compression.zstd import ZstdMethod
from lmcache_kit.contracts.compression import CompressionMethod
from lmcache_kit.contracts.records import CompressionPlugin, Options
from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.errors import BlobError, InvalidRequestError
from lmcache_kit.hookspecs import hookimpl
from lmcache_kit.kv.layout import KVLayout, KVTensor

__all__ = ["MUTANTS", "SOUND", "lmcache_kit_compression_methods"]


class Deflate(CompressionMethod):
    """The sound base of most: number of tokens, then a zlib stream of the raw bytes."""

    head = struct.Struct("<I")

    def encode(self, kv: KVTensor) -> Buffer:
        return self.head.pack(kv.num_tokens) + zlib.compress(kv.tobytes_view(), 1)

    def decode(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> KVTensor:
        if version != self.version:
            raise BlobError(f"version {version} is unknown")
        return KVTensor.from_bytes(self.raw(payload, layout, num_tokens), layout, num_tokens)

    def raw(self, payload: memoryview, layout: KVLayout, num_tokens: int) -> bytes:
        view = memoryview(payload).cast("B")
        if len(view) < self.head.size or self.head.unpack(view[: self.head.size])[0] != num_tokens:
            raise BlobError(f"the payload is not of {num_tokens} tokens")
        stream, nbytes = zlib.decompressobj(), layout.nbytes(num_tokens)
        try:
            raw = stream.decompress(view[self.head.size :], nbytes + 1)
        except zlib.error as error:
            raise BlobError(f"the payload cannot be read: {error}") from None
        if len(raw) != nbytes or not stream.eof or stream.unused_data:
            raise BlobError(f"the payload does not hold {nbytes} bytes")
        return raw


class FiniteOnly(Deflate):
    """Bit for bit, but for NaN, which loses its payload."""

    def encode(self, kv: KVTensor) -> Buffer:
        with np.errstate(invalid="ignore"):
            data = np.where(np.isnan(kv.data.astype(np.float32)), np.float32(np.nan), kv.data.astype(np.float32))
            return super().encode(KVTensor(kv.layout, data.astype(kv.layout.np_dtype)))


class NoMinusZero(Deflate):
    def encode(self, kv: KVTensor) -> Buffer:
        data = kv.data.copy()
        with np.errstate(invalid="ignore"):
            data[data == 0] = 0
        return super().encode(KVTensor(kv.layout, data))


class FlushesSubnormals(Deflate):
    def encode(self, kv: KVTensor) -> Buffer:
        bits = kv.data.copy().view(f"<u{kv.layout.np_dtype.itemsize}")
        mantissa = {"bfloat16": 7, "float16": 10, "float32": 23}[kv.layout.dtype]
        sign = 8 * kv.layout.np_dtype.itemsize - 1
        subnormal = (bits >> mantissa) & ((1 << (sign - mantissa)) - 1) == 0
        bits[subnormal] &= bits.dtype.type(1 << sign)
        return super().encode(KVTensor(kv.layout, bits.view(kv.layout.np_dtype)))


class LosesTheLastToken(Deflate):
    """Rounds down to pairs of tokens."""

    def encode(self, kv: KVTensor) -> Buffer:
        data = kv.data.copy()
        if kv.num_tokens % 2:
            data[:, :, -1] = 0
        return super().encode(KVTensor(kv.layout, data))


class SwapsPlanes(Deflate):
    """Stores V before K, and reads K before V."""

    def encode(self, kv: KVTensor) -> Buffer:
        return super().encode(KVTensor(kv.layout, np.ascontiguousarray(kv.data[:, ::-1])))


class TwoPlanesOnly(Deflate):
    """Knows K and V, and no latent tensor."""

    def encode(self, kv: KVTensor) -> Buffer:
        assert kv.layout.planes == 2
        return super().encode(kv)


class Infinite(Fp8Method):
    """Rounds the largest values up to infinity."""

    def decode(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> KVTensor:
        kv = super().decode(payload, layout, num_tokens, version)
        large = np.abs(kv.data.astype(np.float64)) > float(np.abs(kv.data.astype(np.float64)).max(initial=0)) * 0.99
        kv.data[large & (np.abs(kv.data.astype(np.float64)) > 1e4)] = np.inf
        return kv

    decode_layers = None  # type: ignore[assignment]


class NotANumber(Fp8Method):
    """Divides by the largest value of a vector, also where all are zero."""

    def encode(self, kv: KVTensor) -> Buffer:
        return super().encode(kv)

    def decode(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> KVTensor:
        kv = super().decode(payload, layout, num_tokens, version)
        kv.data[np.abs(kv.data.astype(np.float32)).max(axis=-1) == 0] = np.nan
        return kv

    decode_layers = None  # type: ignore[assignment]


class BreaksItsBound(Fp8Method):
    """The last layer comes back twice as large."""

    def decode(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> KVTensor:
        kv = super().decode(payload, layout, num_tokens, version)
        with np.errstate(over="ignore"):
            kv.data[-1] = np.nan_to_num(kv.data[-1].astype(np.float32) * 2.5).astype(layout.np_dtype)
        return kv

    decode_layers = None  # type: ignore[assignment]


class LayersInReverse(Deflate):
    def decode_layers(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> Iterator[KVTensor]:
        whole, single = self.decode(payload, layout, num_tokens, version), replace(layout, num_layers=1)
        for layer in reversed(range(layout.num_layers)):
            yield KVTensor(single, whole.data[layer : layer + 1])


class LayersInOneArray(Deflate):
    """Decodes every layer into the same array."""

    def decode_layers(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> Iterator[KVTensor]:
        whole, single = self.decode(payload, layout, num_tokens, version), replace(layout, num_layers=1)
        scratch = KVTensor.empty(single, num_tokens)
        for layer in range(layout.num_layers):
            scratch.data[0] = whole.data[layer]
            yield scratch


class LayersTrustTheFirst(Deflate):
    """A damaged payload yields layers of zeros."""

    def decode_layers(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> Iterator[KVTensor]:
        single = replace(layout, num_layers=1)
        try:
            whole = self.decode(payload, layout, num_tokens, version).data
        except BlobError:
            whole = np.zeros(layout.shape(num_tokens), layout.np_dtype)
        for layer in range(layout.num_layers):
            yield KVTensor(single, whole[layer : layer + 1])


class Salted(Deflate):
    """A stamp in the header, and nobody reads it."""

    head = struct.Struct("<I8s")

    def encode(self, kv: KVTensor) -> Buffer:
        return self.head.pack(kv.num_tokens, os.urandom(8)) + zlib.compress(kv.tobytes_view(), 1)


class SaltedByProcess(Salted):
    """The same bytes in one process, others in the next."""

    def encode(self, kv: KVTensor) -> Buffer:
        salt = (hash("salt") & 2**63 - 1).to_bytes(8, "little")
        return self.head.pack(kv.num_tokens, salt) + zlib.compress(kv.tobytes_view(), 1)


class SaltedByObject(Salted):
    """The same bytes from one object, others from the next."""

    def __init__(self) -> None:
        self._salt = os.urandom(8)

    def encode(self, kv: KVTensor) -> Buffer:
        return self.head.pack(kv.num_tokens, self._salt) + zlib.compress(kv.tobytes_view(), 1)


class Drifting(Fp8Method):
    """Decodes a little off, another little every time."""

    calls = 0

    def decode(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> KVTensor:
        kv = super().decode(payload, layout, num_tokens, version)
        type(self).calls += 1
        if self.calls % 2:
            bits = kv.data.reshape(-1).view(f"<u{layout.np_dtype.itemsize}")
            bits[: bits.size // 2] ^= 1
        return kv

    decode_layers = None  # type: ignore[assignment]


class FillsUpWhatIsMissing(Deflate):
    """A truncated stream ends in zeros."""

    def raw(self, payload: memoryview, layout: KVLayout, num_tokens: int) -> bytes:
        nbytes = layout.nbytes(num_tokens)
        try:
            found = zlib.decompressobj().decompress(memoryview(payload).cast("B")[self.head.size :], nbytes)
        except zlib.error as error:
            raise BlobError(str(error)) from None
        return found.ljust(nbytes, b"\0")


class IgnoresWhatFollows(Deflate):
    def raw(self, payload: memoryview, layout: KVLayout, num_tokens: int) -> bytes:
        stream = zlib.decompressobj()
        try:
            found = stream.decompress(memoryview(payload).cast("B")[self.head.size :])
        except zlib.error as error:
            raise BlobError(str(error)) from None
        if len(found) != layout.nbytes(num_tokens) or not stream.eof:
            raise BlobError("wrong size")
        return found


class DamageIsAStructError(Deflate):
    def raw(self, payload: memoryview, layout: KVLayout, num_tokens: int) -> bytes:
        self.head.unpack(memoryview(payload).cast("B")[: self.head.size])
        return super().raw(payload, layout, num_tokens)


class DamageIsAZlibError(Deflate):
    def raw(self, payload: memoryview, layout: KVLayout, num_tokens: int) -> bytes:
        raw = zlib.decompress(memoryview(payload).cast("B")[self.head.size :])
        if len(raw) != layout.nbytes(num_tokens):
            raise BlobError("wrong size")
        return raw


class TrustsItsHeader(Deflate):
    """As many tokens as the payload says, whatever was asked for."""

    head = struct.Struct("<B")

    def encode(self, kv: KVTensor) -> Buffer:
        return self.head.pack(kv.num_tokens % 256) + bytes(kv.tobytes_view())

    def decode(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> KVTensor:
        if version != self.version:
            raise BlobError(f"version {version} is unknown")
        view = memoryview(payload).cast("B")
        if not len(view):
            raise BlobError("empty payload")
        tokens, body = self.head.unpack(view[:1])[0], view[1:]
        if len(body) < layout.nbytes(tokens):
            raise BlobError("truncated")
        return KVTensor.from_bytes(body[: layout.nbytes(tokens)], layout, tokens)


class ChangesItsInput(Deflate):
    """Takes differences in place."""

    def encode(self, kv: KVTensor) -> Buffer:
        bits = kv.data.view(f"<u{kv.layout.np_dtype.itemsize}")
        bits[:, :, 1:] -= bits[:, :, :-1].copy()
        return super().encode(kv)

    def decode(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> KVTensor:
        integer = np.dtype(f"<u{layout.np_dtype.itemsize}")
        bits = super().decode(payload, layout, num_tokens, version).data.view(integer)
        return KVTensor(layout, np.cumsum(bits, axis=2, dtype=integer).view(layout.np_dtype))


class AnyVersion(Deflate):
    def decode(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> KVTensor:
        return super().decode(payload, layout, num_tokens, self.version)


class RemembersTheLast(Deflate):
    """The key to a payload stays in the object that made it."""

    def __init__(self) -> None:
        self._mask = 0

    def encode(self, kv: KVTensor) -> Buffer:
        self._mask = zlib.crc32(kv.tobytes_view()) & 0xFF
        return super().encode(self._masked(kv))

    def decode(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> KVTensor:
        return self._masked(super().decode(payload, layout, num_tokens, version))

    def _masked(self, kv: KVTensor) -> KVTensor:
        raw = np.frombuffer(kv.tobytes_view(), np.uint8) ^ np.uint8(self._mask)
        return KVTensor.from_bytes(raw, kv.layout, kv.num_tokens)


class OneScratch(Deflate):
    """One buffer for all threads."""

    def __init__(self) -> None:
        self._scratch = b""

    def encode(self, kv: KVTensor) -> Buffer:
        self._scratch = bytes(kv.tobytes_view())
        time.sleep(0.0005)  # another thread's turn
        return self.head.pack(kv.num_tokens) + zlib.compress(self._scratch, 1)


class FirstThreadOnly(Deflate):
    """Belongs to the thread that used it first, as a context of a library may."""

    def __init__(self) -> None:
        self._owner: int | None = None

    def encode(self, kv: KVTensor) -> Buffer:
        self._owner = self._owner or threading.get_ident()
        if self._owner != threading.get_ident():
            raise RuntimeError("used from another thread")
        return super().encode(kv)


class RefusesWithValueError(Fp8Method):
    def encode(self, kv: KVTensor) -> Buffer:
        try:
            return super().encode(kv)
        except InvalidRequestError as error:
            raise ValueError(error.message) from None


class LosslessRefuses(ZstdMethod):
    """Declared lossless, but only for numbers."""

    def encode(self, kv: KVTensor) -> Buffer:
        if not np.isfinite(kv.data.astype(np.float64)).all():
            raise InvalidRequestError("infinities and NaN are not supported")
        return super().encode(kv)


class BatchesTogether(Deflate):
    """Several tensors in one call are compressed better than one by one: to other bytes."""

    def encode_many(self, kvs: Sequence[KVTensor]) -> list[Buffer]:
        level = 1 if len(kvs) < 2 else 9
        return [self.head.pack(kv.num_tokens) + zlib.compress(kv.tobytes_view(), level) for kv in kvs]

    def decode_many(
        self, payloads: Sequence[memoryview], layout: KVLayout, num_tokens: Sequence[int], version: int
    ) -> list[KVTensor]:
        pairs = zip(payloads, num_tokens, strict=True)
        return [self.decode(payload, layout, tokens, version) for payload, tokens in pairs]


class BatchesBySize(BatchesTogether):
    """Answers in the order that was fastest."""

    def encode_many(self, kvs: Sequence[KVTensor]) -> list[Buffer]:
        return [self.encode(kv) for kv in kvs]

    def decode_many(
        self, payloads: Sequence[memoryview], layout: KVLayout, num_tokens: Sequence[int], version: int
    ) -> list[KVTensor]:
        return sorted(super().decode_many(payloads, layout, num_tokens, version), key=lambda kv: kv.num_tokens)


class BatchesLeaveOutTheDamaged(BatchesBySize):
    def decode_many(
        self, payloads: Sequence[memoryview], layout: KVLayout, num_tokens: Sequence[int], version: int
    ) -> list[KVTensor]:
        found = []
        for payload, tokens in zip(payloads, num_tokens, strict=True):
            try:
                found.append(self.decode(payload, layout, tokens, version))
            except BlobError:
                continue
        return found


class SoundBatches(Deflate):
    """Sound, and has every ability."""

    def decode_layers(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> Iterator[KVTensor]:
        whole, single = self.decode(payload, layout, num_tokens, version), replace(layout, num_layers=1)
        for layer in range(layout.num_layers):
            yield KVTensor(single, whole.data[layer : layer + 1])

    def encode_many(self, kvs: Sequence[KVTensor]) -> list[Buffer]:
        return [self.encode(kv) for kv in kvs]

    decode_many = BatchesTogether.decode_many


def _fp8_bound(exact: np.ndarray[Any, Any], layout: KVLayout) -> np.ndarray[Any, Any]:
    """What :mod:`lmcache_kit.builtin.compression.fp8` promises, with a little for rounding to the element type."""
    largest = np.maximum(np.abs(exact).max(axis=-1, keepdims=True), 2.0**-118)
    return np.maximum(np.abs(exact) / 16, largest / 229376) * 1.01 + np.abs(exact) / 128 + 1e-7


def _factory(made: Any) -> Callable[[Options], CompressionMethod]:
    def make(options: Options) -> CompressionMethod:
        method: CompressionMethod = made()
        return method

    return make


def _mutant(
    name: str, made: type[CompressionMethod], wrong: str, *caught_by: str, lossy: bool = False, errors: str = ""
) -> Mutant:
    record = CompressionPlugin(
        name=name,
        summary=wrong,
        factory=_factory(made),
        capabilities=frozenset({"deterministic"} if lossy else {"deterministic", "lossless"}),
    )
    fixtures = {"error_bound": _fp8_bound} if lossy else {}
    return Mutant(record=record, wrong=wrong, caught_by=caught_by, errors=tuple(errors.split()), fixtures=fixtures)


SOUND: tuple[Mutant, ...] = (
    _mutant("sound_deflate", Deflate, "nothing"),
    _mutant("sound_batches", SoundBatches, "nothing"),
    _mutant("sound_naive", NaiveMethod, "nothing"),
    _mutant("sound_fp8", Fp8Method, "nothing", lossy=True),
)

MUTANTS: tuple[Mutant, ...] = (
    _mutant("finite_only", FiniteOnly, "declared lossless, but all NaN become one NaN", "test_every_bit_comes_back"),
    _mutant(
        "no_minus_zero",
        NoMinusZero,
        "declared lossless, but -0.0 becomes 0.0",
        "test_special_values_come_back_or_are_refused",
    ),
    _mutant(
        "flushes_subnormals",
        FlushesSubnormals,
        "declared lossless, but subnormal numbers become 0",
        "test_every_bit_comes_back",
    ),
    _mutant(
        "loses_the_last_token",
        LosesTheLastToken,
        "an odd last token comes back as zeros",
        "test_kv_of_usual_layouts_comes_back",
    ),
    _mutant("swaps_planes", SwapsPlanes, "K comes back as V", "test_kv_of_usual_layouts_comes_back"),
    _mutant(
        "two_planes_only",
        TwoPlanesOnly,
        "fails with latent attention's one plane",
        "test_kv_of_usual_layouts_comes_back",
        errors="AssertionError",
    ),
    _mutant(
        "infinite", Infinite, "finite values come back infinite", "test_kv_of_models_comes_back_finite", lossy=True
    ),
    _mutant(
        "not_a_number",
        NotANumber,
        "vectors of zeros come back as NaN",
        "test_kv_of_models_comes_back_finite",
        lossy=True,
    ),
    _mutant(
        "breaks_its_bound",
        BreaksItsBound,
        "the last layer comes back 2.5 times as large",
        "test_the_error_stays_within_what_is_promised",
        lossy=True,
    ),
    _mutant(
        "layers_in_reverse",
        LayersInReverse,
        "decode_layers begins with the last layer",
        "test_layers_are_those_of_the_whole",
    ),
    _mutant(
        "layers_in_one_array",
        LayersInOneArray,
        "decode_layers overwrites the layers it gave out",
        "test_layers_are_those_of_the_whole",
    ),
    _mutant(
        "layers_of_the_damaged",
        LayersTrustTheFirst,
        "decode_layers makes zeros of a damaged payload",
        "test_layers_of_a_damaged_payload_are_refused_where_the_whole_is",
    ),
    _mutant("salted", Salted, "the same KV gives other bytes every time", "test_the_same_kv_gives_the_same_bytes"),
    _mutant(
        "salted_by_process",
        SaltedByProcess,
        "the same KV gives other bytes in another process",
        "test_another_process_gives_the_same_bytes",
    ),
    _mutant(
        "salted_by_object",
        SaltedByObject,
        "the same KV gives other bytes from another object",
        "test_the_same_kv_gives_the_same_bytes",
    ),
    _mutant(
        "drifting",
        Drifting,
        "the same payload decodes to other values the second time",
        "test_a_payload_decodes_to_the_same_every_time",
        lossy=True,
    ),
    _mutant(
        "fills_up_what_is_missing",
        FillsUpWhatIsMissing,
        "a truncated payload decodes, with zeros at the end",
        "test_a_truncated_payload_is_refused",
    ),
    _mutant(
        "ignores_what_follows",
        IgnoresWhatFollows,
        "bytes after the payload are not noticed",
        "test_bytes_after_a_payload_are_refused",
    ),
    _mutant(
        "damage_is_a_struct_error",
        DamageIsAStructError,
        "an empty payload is a struct.error",
        "test_a_truncated_payload_is_refused",
        errors="error",
    ),
    _mutant(
        "damage_is_a_zlib_error",
        DamageIsAZlibError,
        "a damaged payload is a zlib.error",
        "test_a_damaged_payload_is_refused_or_stays_a_tensor",
        errors="error",
    ),
    _mutant(
        "trusts_its_header",
        TrustsItsHeader,
        "a flipped bit changes how many tokens come back",
        "test_a_damaged_payload_is_refused_or_stays_a_tensor",
    ),
    _mutant(
        "changes_its_input",
        ChangesItsInput,
        "encode writes into the KV that it was given",
        "test_kv_of_usual_layouts_comes_back",
    ),
    _mutant(
        "any_version",
        AnyVersion,
        "a payload of a later version is read as one of this version",
        "test_a_later_version_is_refused",
    ),
    _mutant(
        "remembers_the_last",
        RemembersTheLast,
        "decodes only what the same object encoded last",
        "test_a_payload_decodes_to_the_same_every_time",
    ),
    _mutant("one_scratch", OneScratch, "two threads encode into one buffer", "test_threads_get_the_answers_of_one"),
    _mutant(
        "first_thread_only",
        FirstThreadOnly,
        "fails in a second thread",
        "test_threads_get_the_answers_of_one",
        errors="RuntimeError",
    ),
    _mutant(
        "refuses_with_value_error",
        RefusesWithValueError,
        "NaN is a ValueError",
        "test_special_values_come_back_or_are_refused",
        lossy=True,
        errors="ValueError",
    ),
    _mutant(
        "lossless_refuses",
        LosslessRefuses,
        "declared lossless, but refuses NaN",
        "test_special_values_come_back_or_are_refused",
        errors="InvalidRequestError",
    ),
    _mutant(
        "batches_together",
        BatchesTogether,
        "encode_many makes other bytes than encode",
        "test_many_at_once_are_those_of_one_by_one",
    ),
    _mutant(
        "batches_by_size", BatchesBySize, "decode_many answers in order of size", "test_many_are_decoded_as_one_by_one"
    ),
    _mutant(
        "batches_leave_out_the_damaged",
        BatchesLeaveOutTheDamaged,
        "decode_many skips a damaged payload",
        "test_many_are_decoded_as_one_by_one",
    ),
)


@hookimpl
def lmcache_kit_compression_methods() -> Iterable[CompressionPlugin]:
    """How a process of its own finds a mutant that is not installed."""
    return [each.record for each in (*SOUND, *MUTANTS)]
