"""Measuring and fitting compression methods: what ``lmcache-kit codec`` does, without its command line."""

from lmcache_kit.codec_tools.difference import Difference, difference
from lmcache_kit.codec_tools.document import SCHEMA_VERSION, bench_document
from lmcache_kit.codec_tools.kv_file import convert_kv, read_kv, read_samples, write_kv
from lmcache_kit.codec_tools.measuring import CodecResult, measure_method
from lmcache_kit.codec_tools.methods import Choice, choose_methods
from lmcache_kit.codec_tools.random_kv import random_kv
from lmcache_kit.codec_tools.sampling import sample_kv

__all__ = [
    "SCHEMA_VERSION",
    "Choice",
    "CodecResult",
    "Difference",
    "bench_document",
    "choose_methods",
    "convert_kv",
    "difference",
    "measure_method",
    "random_kv",
    "read_kv",
    "read_samples",
    "sample_kv",
    "write_kv",
]
