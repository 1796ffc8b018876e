"""Which implementations an operation has, and how one is loaded.

Every operation is a folder: ``reference`` (numpy, the oracle), ``xla`` (``jax.jit``) and, where there is one, a
Pallas kernel. All of them take and return the same arrays and agree bit for bit: a backend is a matter of speed alone.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType

__all__ = ["UnknownBackendError", "backends_of", "implementation"]

# Backend name -> module beside the operation's api. "pallas_interpret" runs the Pallas kernels on any device, slowly:
# it exists to check them where there is no GPU.
_MODULES = {"numpy": "reference", "xla": "xla", "pallas_interpret": "pallas_interpret"}


class UnknownBackendError(ValueError):
    """An operation has no implementation of that name."""


@functools.cache
def backends_of(operation: str) -> tuple[str, ...]:
    """Names of the backends of ``operation`` (``quantize``, ``tables`` or ``rans``), the reference first."""
    package = f"lmcache_kit_kernels.{operation}"
    found = importlib.util.find_spec(package)
    if found is None:
        raise UnknownBackendError(f"there is no operation {operation!r}")
    return tuple(name for name in _MODULES if importlib.util.find_spec(f"{package}.{_MODULES[name]}") is not None)


@functools.cache
def implementation(operation: str, backend: str) -> ModuleType:
    """The module that implements ``operation`` on ``backend``. Raises UnknownBackendError with the known names."""
    known = backends_of(operation)
    if backend not in known:
        raise UnknownBackendError(f"{operation} has no backend {backend!r}; it has {', '.join(known)}")
    return importlib.import_module(f"lmcache_kit_kernels.{operation}.{_MODULES[backend]}")
