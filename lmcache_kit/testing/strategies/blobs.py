"""Whole stored objects, and objects that something happened to."""

from __future__ import annotations

from hypothesis import strategies as st

from lmcache_kit.kv.blob import BlobHeader, pack_blob, peek_header
from lmcache_kit.kv.keys import ChunkKey
from lmcache_kit.kv.layout import DTYPES, KVLayout

__all__ = ["blob_headers", "blobs", "chunk_keys", "damaged", "damaged_blobs"]

_MODEL = "abcdefghijklmnopqrstuvwxyz0123456789-_"


def chunk_keys() -> st.SearchStrategy[ChunkKey]:
    """Keys of chunks: any model, any 64-bit hash of either sign and a little beyond."""
    return st.builds(ChunkKey, st.text(_MODEL, min_size=1, max_size=64), st.integers(-(2**64), 2**64))


def blob_headers() -> st.SearchStrategy[BlobHeader]:
    """Headers of any codec, version, layout and length; what they describe need not fit a payload."""
    shapes = st.builds(
        KVLayout,
        st.integers(1, 65_535),
        st.integers(1, 65_535),
        st.integers(1, 2000),
        st.sampled_from(DTYPES),
        st.sampled_from([1, 2]),
    )
    codecs = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)
    return st.builds(BlobHeader, codecs, st.integers(0, 65_535), shapes, st.integers(0, 1000), chunk_keys())


@st.composite
def blobs(draw: st.DrawFn, *, max_payload: int = 300) -> bytes:
    """A whole stored object, as ``unpack_blob`` accepts it, of any payload up to ``max_payload`` bytes."""
    return pack_blob(draw(blob_headers()), draw(st.binary(max_size=max_payload)))


@st.composite
def damaged(draw: st.DrawFn, whole: bytes, *, boundary: int | None = None) -> bytes:
    """What is left of ``whole`` after an accident; never equal to it.

    One bit flips, a stretch is overwritten or zeroed, the end is missing, bytes follow, or two stretches change
    places; ``boundary`` splits the two that do (half the length by default).

    Raises ValueError for an empty ``whole``, to which no accident but growing can happen.
    """
    if not whole:
        raise ValueError("nothing to damage: give at least one byte")
    size = len(whole)
    kind = draw(st.sampled_from(["flip", "overwrite", "zero", "truncate", "extend", "swap"]))
    start = draw(st.integers(0, size - 1))
    stop = draw(st.integers(start + 1, min(size, start + 20)))
    middle = size // 2 if boundary is None else min(boundary, size)
    changed = {
        "overwrite": lambda: (
            whole[:start] + draw(st.binary(min_size=stop - start, max_size=stop - start)) + whole[stop:]
        ),
        "zero": lambda: whole[:start] + bytes(stop - start) + whole[stop:],
        "truncate": lambda: whole[:start],
        "extend": lambda: whole + draw(st.binary(min_size=1, max_size=20)),
        "swap": lambda: whole[middle:] + whole[:middle],
        "flip": lambda: whole,
    }[kind]()
    if changed == whole:
        bit = draw(st.integers(0, 8 * size - 1))
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        changed = bytes(flipped)
    return changed


@st.composite
def damaged_blobs(draw: st.DrawFn, *, max_payload: int = 300) -> bytes:
    """A stored object that something happened to: ``unpack_blob`` must refuse it. Header and payload may be swapped."""
    whole = draw(blobs(max_payload=max_payload))
    return draw(damaged(whole, boundary=len(whole) - peek_header(whole).payload_bytes))
