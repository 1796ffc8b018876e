"""Quick behavioural checks of one plugin, behind ``lmcache-kit plugins check``."""

from lmcache_kit.testing.checks.check import check_plugin
from lmcache_kit.testing.checks.result import CheckResult

__all__ = ["CheckResult", "check_plugin"]
