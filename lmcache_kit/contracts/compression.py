"""Compression methods: KV tensor to payload bytes and back.

Capabilities:
    ``lossless``: the decoded KV equals the encoded KV bit for bit.
    ``deterministic``: the same KV gives the same bytes every time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Protocol, runtime_checkable

from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.kv.layout import KVLayout, KVTensor

__all__ = ["CompressionMethod", "SupportsBatches", "SupportsFitting", "SupportsLayerwise"]


class CompressionMethod(ABC):
    """One method, configured. Methods are called from worker threads and must be thread-safe."""

    version: ClassVar[int] = 1
    """Version of the payload format, stored in the blob; :meth:`decode` must read every version it ever wrote."""

    device: str = "cpu"
    """Where the work runs, as ``/check_finish`` reports it."""

    @abstractmethod
    def encode(self, kv: KVTensor) -> Buffer:
        """The payload of ``kv`` (``[L, P, T, H, D]``).

        Raises InvalidRequestError, naming the reason, for KV that the method cannot represent.
        """

    @abstractmethod
    def decode(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> KVTensor:
        """KV of ``num_tokens`` tokens from a payload that :meth:`encode` of ``version`` made.

        Raises BlobError for a payload that cannot be decoded, bytes that are missing or left over included; never
        reads outside of it.
        """


@runtime_checkable
class SupportsLayerwise(Protocol):
    """Optional: decode one layer after the other; loads then never hold a whole decoded chunk beside its place."""

    def decode_layers(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> Iterator[KVTensor]:
        """One tensor ``[1, P, T, H, D]`` per layer, in order. Raises BlobError, at the latest behind the last layer,
        where :meth:`CompressionMethod.decode` does."""
        ...


@runtime_checkable
class SupportsBatches(Protocol):
    """Optional: many tensors in one call, for methods that are faster that way. The results are those of one by one."""

    def encode_many(self, kvs: Sequence[KVTensor]) -> list[Buffer]:
        """The payload of each of ``kvs``, byte for byte what :meth:`CompressionMethod.encode` makes of it.

        They may differ in layout and token count. Raises InvalidRequestError when any one cannot be represented.
        """
        ...

    def decode_many(
        self, payloads: Sequence[memoryview], layout: KVLayout, num_tokens: Sequence[int], version: int
    ) -> list[KVTensor]:
        """KV of each payload, ``num_tokens[i]`` tokens of payload ``i``. Raises BlobError when any one cannot be
        decoded."""
        ...


@runtime_checkable
class SupportsFitting(Protocol):
    """Optional: learn from sample KV of a model what makes its KV smaller; ``lmcache-kit codec fit`` calls it."""

    def fit(self, samples: Iterable[KVTensor]) -> bytes:
        """The contents of a profile file for KV like ``samples``, which share one layout; each is looked at once.

        How a method is told to use the file is up to its options. Raises InvalidRequestError for samples that nothing
        can be learnt from.
        """
        ...
