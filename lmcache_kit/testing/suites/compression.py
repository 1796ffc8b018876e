"""Compression methods: what goes in comes out, exactly or nearly; damage is noticed or harmless."""

from __future__ import annotations

from lmcache_kit.testing.suites.compression_abilities import OptionalAbilityTests
from lmcache_kit.testing.suites.compression_base import ErrorBound
from lmcache_kit.testing.suites.compression_damage import DamagedPayloadTests
from lmcache_kit.testing.suites.compression_round_trip import RoundTripTests

__all__ = ["CompressionMethodTests", "ErrorBound"]


class CompressionMethodTests(OptionalAbilityTests, DamagedPayloadTests, RoundTripTests):
    """What :class:`lmcache_kit.contracts.CompressionMethod` promises.

    Optional fixture: ``error_bound``, what a lossy method promises of its error (see :data:`ErrorBound`).
    """
