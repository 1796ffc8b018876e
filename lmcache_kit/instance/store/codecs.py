"""Compression methods by name: KV tensors to stored blobs and back."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lmcache_kit.contracts.compression import CompressionMethod, SupportsBatches, SupportsLayerwise
from lmcache_kit.contracts.records import CompressionPlugin
from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.errors import BlobError, UnknownNameError
from lmcache_kit.kv.blob import Blob, BlobHeader, pack_blob, unpack_blob
from lmcache_kit.kv.keys import ChunkKey
from lmcache_kit.kv.layout import KVLayout, KVTensor
from lmcache_kit.plugins import PluginRegistry, registry

__all__ = ["CodecSet", "verify_decoded"]


class CodecSet:
    """Every registered compression method, made when first used. Thread-safe.

    Args:
        plugins: where methods come from; this process's registry by default.
        options: options of methods, by name.
    """

    def __init__(
        self, plugins: PluginRegistry | None = None, *, options: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        self._plugins = plugins if plugins is not None else registry()
        self._options = {name: dict(values) for name, values in (options or {}).items()}
        self._methods: dict[str, CompressionMethod] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Known methods, sorted."""
        return self._plugins.names(CompressionPlugin.kind)

    def record(self, method: str) -> CompressionPlugin:
        """The method's record, without making the method. Raises UnknownNameError."""
        try:
            return self._plugins.get(CompressionPlugin, method)
        except UnknownNameError as error:  # its hint may name the distribution to install, or what is wrong with it
            raise UnknownNameError("compression method", method, self.names(), hint=error.hint) from None

    def lossless(self, method: str) -> bool:
        """Whether the method's record promises bit-exact decoding."""
        return "lossless" in self.record(method).capabilities

    def get(self, method: str) -> CompressionMethod:
        """The method itself. Raises UnknownNameError, and ConfigError for wrong options."""
        made = self._methods.get(method)
        if made is None:
            with self._lock:
                made = self._methods.get(method)
                if made is None:
                    record = self.record(method)
                    made = record.factory(self._plugins.options(record, self._options.get(method)))
                    self._methods[method] = made
        return made

    def encode(self, kv: KVTensor, key: ChunkKey, method: str) -> bytes:
        """The blob of ``kv`` under ``method``."""
        codec = self.get(method)
        return self.pack(codec.encode(kv), kv, key, method)

    def encode_many(self, kvs: Sequence[KVTensor], keys: Sequence[ChunkKey], method: str) -> list[bytes]:
        """The blobs of ``kvs`` under ``method``, in one call of a method that can."""
        codec = self.get(method)
        payloads = codec.encode_many(kvs) if isinstance(codec, SupportsBatches) else [codec.encode(kv) for kv in kvs]
        return [self.pack(payload, kv, key, method) for payload, kv, key in zip(payloads, kvs, keys, strict=True)]

    def pack(self, payload: Buffer, kv: KVTensor, key: ChunkKey, method: str) -> bytes:
        """The blob around a payload that ``method`` made of ``kv``."""
        header = BlobHeader(method, self.get(method).version, kv.layout, kv.num_tokens, key)
        return pack_blob(header, payload)

    def decode(self, blob: Buffer) -> KVTensor:
        """KV of a blob, whatever the method. Raises BlobError for any blob that cannot be decoded."""
        return self.decode_blob(unpack_blob(blob))

    def decode_blob(self, blob: Blob) -> KVTensor:
        """KV of an unpacked blob. Raises BlobError."""
        header = blob.header
        with self._blamed_on_the_bytes(header) as method:
            kv = method.decode(blob.payload, header.layout, header.num_tokens, header.codec_version)
        if kv.layout != header.layout or kv.num_tokens != header.num_tokens:
            raise BlobError(f"{header.codec} decoded chunk {header.key.name()} to another shape than its header says")
        return kv

    def decode_blobs(self, blobs: Sequence[Blob]) -> list[KVTensor]:
        """KV of unpacked blobs; those of one method, version and layout in one call of a method that can.

        Raises BlobError when any one cannot be decoded.
        """
        alike: dict[tuple[str, int, KVLayout], list[int]] = defaultdict(list)
        for place, blob in enumerate(blobs):
            header = blob.header
            alike[header.codec, header.codec_version, header.layout].append(place)
        decoded: dict[int, KVTensor] = {}
        for (_, version, layout), places in alike.items():
            first = blobs[places[0]].header
            with self._blamed_on_the_bytes(first) as method:
                if len(places) == 1 or not isinstance(method, SupportsBatches):
                    decoded.update((place, self.decode_blob(blobs[place])) for place in places)
                    continue
                tokens = [blobs[place].header.num_tokens for place in places]
                kvs = method.decode_many([blobs[place].payload for place in places], layout, tokens, version)
            if [(kv.layout, kv.num_tokens) for kv in kvs] != [(layout, count) for count in tokens]:
                raise BlobError(f"{first.codec} decoded {len(places)} chunks to other shapes than their headers say")
            decoded.update(zip(places, kvs, strict=True))
        return [decoded[place] for place in range(len(blobs))]

    def decode_into(self, blob: Blob, target: np.ndarray[Any, np.dtype[Any]]) -> None:
        """KV of an unpacked blob into ``target`` ``[L, P, T', H, D]``, its first ``T'`` tokens. Raises BlobError.

        A method that can decodes layer by layer, so that no whole chunk is held beside the target. After an error the
        target's contents are undefined.
        """
        header = blob.header
        with self._blamed_on_the_bytes(header) as method:
            if not isinstance(method, SupportsLayerwise):
                target[:] = self.decode_blob(blob).data[:, :, : target.shape[2]]
                return
            layers = method.decode_layers(blob.payload, header.layout, header.num_tokens, header.codec_version)
            for place, layer in zip(target, layers, strict=True):
                place[:] = layer.data[0, :, : target.shape[2]]

    @contextlib.contextmanager
    def _blamed_on_the_bytes(self, header: BlobHeader) -> Iterator[CompressionMethod]:
        """The blob's method; whatever goes wrong inside is a BlobError."""
        name = header.key.name()
        try:
            method = self.get(header.codec)
        except UnknownNameError as error:
            raise BlobError(f"chunk {name}: {error.message}", hint=error.hint) from None
        try:
            yield method
        except BlobError:
            raise
        except Exception as error:
            # A method must raise BlobError; one that does not is treated as if it had, since the bytes are to blame.
            raise BlobError(f"{header.codec} cannot decode chunk {name}: {error}") from error


def verify_decoded(source: KVTensor, decoded: KVTensor, *, lossless: bool) -> str | None:
    """What is wrong with ``decoded`` as a stand-in for ``source``, or None.

    Bit-exact for a lossless method; for others the same shape and dtype, and finite wherever the source is.
    """
    if decoded.layout != source.layout or decoded.num_tokens != source.num_tokens:
        return "it decodes to another shape or dtype"
    if lossless:
        same = np.array_equal(source.data.reshape(-1).view(np.uint8), decoded.data.reshape(-1).view(np.uint8))
        return None if same else "the method is declared lossless but decodes to other bits"
    for before, after in zip(source.data, decoded.data, strict=True):
        if bool(np.any(np.isfinite(before) & ~np.isfinite(after))):
            return "finite values become infinite or not a number"
    return None
