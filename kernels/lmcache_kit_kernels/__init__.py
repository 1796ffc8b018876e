"""Array kernels for KV cache compression. Knows nothing of lmcache_kit; imports jax only when a backend needs it."""

from lmcache_kit_kernels.backends import BackendUnavailableError, UnknownBackendError, backends_of
from lmcache_kit_kernels.errors import CorruptStreamError

__all__ = ["BackendUnavailableError", "CorruptStreamError", "UnknownBackendError", "__version__", "backends_of"]

__version__ = "0.1.0"
