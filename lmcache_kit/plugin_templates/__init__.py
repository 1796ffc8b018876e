"""What ``lmcache-kit plugins new`` writes: one folder of templates per kind, and what all kinds share."""

from lmcache_kit.plugin_templates.names import PluginNames, plugin_names
from lmcache_kit.plugin_templates.writing import write_plugin

__all__ = ["PluginNames", "plugin_names", "write_plugin"]
