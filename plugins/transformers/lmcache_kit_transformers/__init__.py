"""lmcache-kit engine on Hugging Face transformers and torch."""

from lmcache_kit_transformers.plugin import lmcache_kit_engines

__all__ = ["lmcache_kit_engines"]
