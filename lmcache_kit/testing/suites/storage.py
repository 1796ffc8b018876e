"""Storage backends: named blobs, whole or not at all."""

from __future__ import annotations

from lmcache_kit.testing.suites.storage_abilities import DeclaredAndFailingTests
from lmcache_kit.testing.suites.storage_objects import ObjectTests

__all__ = ["StorageBackendTests"]


class StorageBackendTests(DeclaredAndFailingTests, ObjectTests):
    """What :class:`lmcache_kit.contracts.StorageBackend` promises.

    Optional fixture: ``unreachable``, options with which the store cannot be reached.
    """
