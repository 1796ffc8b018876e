"""Tokens to chunks to keys, KV tensors, and the stored blob."""

from lmcache_kit.kv.blob import Blob, BlobHeader, pack_blob, peek_header, unpack_blob
from lmcache_kit.kv.hashing import HASH_ALGORITHMS, ChunkHasher, HashSpec, default_none_hash
from lmcache_kit.kv.keys import ChunkKey
from lmcache_kit.kv.layout import DType, KVLayout, KVTensor, numpy_dtype

__all__ = [
    "HASH_ALGORITHMS",
    "Blob",
    "BlobHeader",
    "ChunkHasher",
    "ChunkKey",
    "DType",
    "HashSpec",
    "KVLayout",
    "KVTensor",
    "default_none_hash",
    "numpy_dtype",
    "pack_blob",
    "peek_header",
    "unpack_blob",
]
