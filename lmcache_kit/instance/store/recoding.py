"""Chunks from one compression method into another, verified, one by one or several in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmcache_kit.contracts.compression import SupportsBatches
from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.errors import BlobError
from lmcache_kit.instance.core.tiers import Entry
from lmcache_kit.instance.store.codecs import CodecSet, verify_decoded
from lmcache_kit.instance.store.reader import check_header
from lmcache_kit.kv.blob import Blob, unpack_blob
from lmcache_kit.kv.layout import KVLayout

__all__ = ["Recoded", "Recoder"]

# What goes into one call: enough to occupy a GPU, little enough to hold twice in memory.
_MOST_CHUNKS = 64
_MOST_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Recoded:
    """A chunk in its new method, and the bytes that it took in its old one."""

    blob: bytes
    before: int


class Recoder:
    """Decodes, encodes and verifies; does no I/O and may be called from any thread."""

    def __init__(self, codecs: CodecSet, layout: KVLayout) -> None:
        self._codecs = codecs
        self._layout = layout

    def one(self, data: Buffer, entry: Entry, method: str) -> Recoded | None:
        """The chunk in ``method``, verified by decoding it; None when it is in that method already."""
        blob = self._unpacked(data, entry)
        if blob.header.codec == method:
            return None
        (recoded,) = self._recoded([blob], [memoryview(data).nbytes], method)
        return recoded

    def many(self, found: Sequence[tuple[Buffer, Entry]], method: str) -> dict[str, Recoded]:
        """By name, those of the chunks that can be put into ``method`` together; none of them when any one fails, for
        then each has to be tried by itself to know which."""
        try:
            blobs = [(memoryview(data).nbytes, self._unpacked(data, entry)) for data, entry in found]
            others = [(before, blob) for before, blob in blobs if blob.header.codec != method]
            recoded = self._recoded([blob for _, blob in others], [before for before, _ in others], method)
        except Exception:  # a plugin's code may raise anything; one by one it raises it again, for the job to report
            return {}
        return {blob.header.key.name(): new for (_, blob), new in zip(others, recoded, strict=True)}

    def batches(self, codec: str) -> bool:
        """Whether the method is one that is faster with several chunks in one call."""
        return isinstance(self._codecs.get(codec), SupportsBatches)

    def at_once(self, num_tokens: int) -> int:
        """How many chunks of so many tokens go into one call."""
        return max(1, min(_MOST_CHUNKS, _MOST_BYTES // max(1, self._layout.nbytes(num_tokens))))

    def _unpacked(self, data: Buffer, entry: Entry) -> Blob:
        blob = unpack_blob(data)
        check_header(blob.header, entry.key, self._layout, entry.num_tokens)
        return blob

    def _recoded(self, blobs: Sequence[Blob], before: Sequence[int], method: str) -> list[Recoded]:
        kvs = self._codecs.decode_blobs(blobs)
        new = self._codecs.encode_many(kvs, [blob.header.key for blob in blobs], method)
        lossless = self._codecs.lossless(method)
        for kv, decoded in zip(kvs, self._codecs.decode_blobs([unpack_blob(blob) for blob in new]), strict=True):
            wrong = verify_decoded(kv, decoded, lossless=lossless)
            if wrong is not None:
                raise BlobError(f"{method} does not pass its check: {wrong}", hint="the chunk was left as it was")
        return [Recoded(blob, size) for blob, size in zip(new, before, strict=True)]
