"""What a store finds in its persistent tiers when it opens."""

from __future__ import annotations

import contextlib
import logging

from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.errors import BlobError, InvalidRequestError, UnavailableError
from lmcache_kit.instance.core.cache import CacheCore
from lmcache_kit.instance.store.execution import Work
from lmcache_kit.instance.store.reader import check_header
from lmcache_kit.instance.store.tier_io import TierIO
from lmcache_kit.instance.store.writer import Writer
from lmcache_kit.kv.blob import BlobHeader, pack_blob, peek_header
from lmcache_kit.kv.keys import ChunkKey
from lmcache_kit.kv.layout import KVLayout

__all__ = ["recover"]

log = logging.getLogger(__name__)


async def recover(core: CacheCore, io: TierIO, work: Work, writer: Writer, model: str, layout: KVLayout) -> None:
    """Take over the contents of persistent tiers that belong to this instance alone.

    Headers and lengths are checked, payloads when they are read. What is damaged or of another model is deleted and
    logged; what is more than the tier's capacity is evicted by its policy before anything is announced. What can be
    neither read nor deleted is not served and keeps its room. A shared tier is not listed: what it holds is found when
    it is asked for. A tier that cannot be reached starts empty.
    """
    for index, tier in enumerate(io.tiers):
        if not tier.persistent or tier.shared:
            continue
        try:
            found = await io.entries(index)
        except UnavailableError:
            continue
        for name, nbytes in sorted(found):
            try:
                header = await _check(io, work, index, name, nbytes, model, layout)
            except UnavailableError:
                _doubt(core, index, name, nbytes)
                continue
            except (BlobError, InvalidRequestError) as error:
                io.counters[index].damaged += 1
                log.warning("%s: %s is deleted: %s", tier.location, name, error.message)
                try:
                    await io.delete(index, name)
                except UnavailableError:
                    _doubt(core, index, name, nbytes)
                continue
            if header is not None:
                core.restore(index, header.key, nbytes=nbytes, num_tokens=header.num_tokens, codec=header.codec)
                io.counters[index].recovered += 1
        for removal in core.trim(index):
            await writer.carry_out(removal)
        core.announce_restored(index)


def _doubt(core: CacheCore, index: int, name: str, nbytes: int) -> None:
    with contextlib.suppress(InvalidRequestError):  # what is not named as a chunk is none of ours to account for
        core.restore(index, ChunkKey.parse(name), nbytes=nbytes, num_tokens=0, codec="", doubtful=True)


async def _check(
    io: TierIO, work: Work, index: int, name: str, nbytes: int, model: str, layout: KVLayout
) -> BlobHeader | None:
    key = ChunkKey.parse(name)
    if key.model != model:
        raise BlobError(f"it belongs to model {key.model}, this instance serves {model}")
    blob = await io.get(index, name)
    return None if blob is None else await work.call(_check_blob, blob, nbytes, key, layout)


def _check_blob(blob: Buffer, nbytes: int, key: ChunkKey, layout: KVLayout) -> BlobHeader:
    header = peek_header(blob)
    check_header(header, key, layout, None)
    size = memoryview(blob).nbytes
    if size != nbytes or size != len(pack_blob(header, b"")) + header.payload_bytes:
        raise BlobError(f"it has {size} bytes, its header announces {header.payload_bytes} of payload")
    return header
