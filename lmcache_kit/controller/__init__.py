"""The controller: who holds which chunks, and operations on them."""

from lmcache_kit.controller.config import ControllerConfig
from lmcache_kit.controller.core import ControllerCore

__all__ = ["ControllerConfig", "ControllerCore"]
