"""Hypothesis strategies for what the project handles: tokens, prompts, layouts, KV, blobs, faults."""

from lmcache_kit.testing.strategies.blobs import blob_headers, blobs, chunk_keys, damaged, damaged_blobs
from lmcache_kit.testing.strategies.faults import fault_plans
from lmcache_kit.testing.strategies.kv import any_bits, finite_kv, kv_tensors, layouts
from lmcache_kit.testing.strategies.tokens import prefix_trees, token_lists

__all__ = [
    "any_bits",
    "blob_headers",
    "blobs",
    "chunk_keys",
    "damaged",
    "damaged_blobs",
    "fault_plans",
    "finite_kv",
    "kv_tensors",
    "layouts",
    "prefix_trees",
    "token_lists",
]
