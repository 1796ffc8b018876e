"""Which implementations an operation has, and how one is loaded.

Every operation is a folder: ``reference`` (numpy, the oracle) and beside it whichever of the others it has. All of
them take and return the same arrays and agree bit for bit: a backend is a matter of speed alone.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType

__all__ = ["BackendUnavailableError", "UnknownBackendError", "backends_of", "implementation"]

# Backend name -> module beside the operation's api, and the package it needs. "pallas_interpret" runs the Pallas
# kernels on any device, slowly: it exists to check them where there is no GPU.
_MODULES = {
    "numpy": ("reference", "numpy"),
    "xla": ("xla", "jax"),
    "numba": ("numba_loops", "numba"),
    "pallas": ("pallas", "jax"),
    "pallas_interpret": ("pallas_interpret", "jax"),
}


class UnknownBackendError(ValueError):
    """An operation has no implementation of that name."""


class BackendUnavailableError(UnknownBackendError):
    """The implementation exists, but the package that it needs is not installed."""


@functools.cache
def backends_of(operation: str) -> tuple[str, ...]:
    """Names of the backends of ``operation`` (a folder of this package such as ``rans``), the reference first.

    Raises UnknownBackendError if there is no such operation. Says nothing of what is installed or which device there
    is.
    """
    package = f"lmcache_kit_kernels.{operation}"
    found = importlib.util.find_spec(package)
    if found is None or found.submodule_search_locations is None:
        raise UnknownBackendError(f"there is no operation {operation!r}")
    return tuple(
        name for name, (module, _) in _MODULES.items() if importlib.util.find_spec(f"{package}.{module}") is not None
    )


@functools.cache
def implementation(operation: str, backend: str) -> ModuleType:
    """The module that implements ``operation`` on ``backend``.

    Raises UnknownBackendError with the known names, and BackendUnavailableError with the package to install.
    """
    known = backends_of(operation)
    if backend not in known:
        raise UnknownBackendError(f"{operation} has no backend {backend!r}; it has {', '.join(known)}")
    module, needed = _MODULES[backend]
    if importlib.util.find_spec(needed) is None:
        raise BackendUnavailableError(f"backend {backend!r} needs {needed}: pip install {needed}")
    return importlib.import_module(f"lmcache_kit_kernels.{operation}.{module}")
