"""Typed facade over pluggy: discovery, duplicates, options and install hints.

No other module touches pluggy's hooks. Which plugins are considered:

- the built-in ones, always;
- every entry point of the group ``lmcache_kit``, or only those named in ``LMCACHE_KIT_PLUGINS`` (comma separated
  entry point names; an empty value means none);
- modules named with ``-p`` on the command line or in ``LMCACHE_KIT_PLUGIN_MODULES``, which child processes inherit.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeVar

import msgspec
import pluggy

from lmcache_kit import hookspecs
from lmcache_kit.clock import Clock, WallClock
from lmcache_kit.contracts.records import PLUGIN_KINDS, Options, Plugin
from lmcache_kit.errors import ConfigError, PluginError, UnknownNameError, nearest
from lmcache_kit.plugin_checks import check_hooks, check_record, import_failure, is_hook, one_line, records_of

__all__ = [
    "ALLOW_VARIABLE",
    "MODULES_VARIABLE",
    "SLOW_IMPORT_SECONDS",
    "BrokenPlugin",
    "PluginRegistry",
    "RegisteredPlugin",
    "registry",
]

log = logging.getLogger(__name__)

ALLOW_VARIABLE = "LMCACHE_KIT_PLUGINS"
MODULES_VARIABLE = "LMCACHE_KIT_PLUGIN_MODULES"
SLOW_IMPORT_SECONDS = 1.0
"""A plugin that takes longer to import is told of: every command waits for it."""

_BUILTIN = "lmcache_kit.builtin"
_HOOK_OF_KIND = {
    "storage": "lmcache_kit_storage_backends",
    "compression": "lmcache_kit_compression_methods",
    "transport": "lmcache_kit_transports",
    "engine": "lmcache_kit_engines",
    "eviction": "lmcache_kit_eviction_policies",
    "placement": "lmcache_kit_placement_policies",
    "workload": "lmcache_kit_workloads",
    "trace": "lmcache_kit_trace_readers",
    "launcher": "lmcache_kit_launchers",
    "reporter": "lmcache_kit_reporters",
}
# Names that a user may meet in our documents before installing the distribution that has them.
_DISTRIBUTION_OF: dict[tuple[str, str], str] = {
    ("compression", "cachegen"): "lmcache-kit-cachegen",
    ("engine", "transformers"): "lmcache-kit-transformers",
    ("engine", "vllm"): "lmcache-kit-vllm",
    **{("storage", name): "lmcache-kit-fsspec" for name in ("fsspec", "fsspec_memory", "fsspec_private")},
    ("storage", "valkey"): "lmcache-kit-valkey",
}

P = TypeVar("P", bound=Plugin)


@dataclass(frozen=True, slots=True)
class RegisteredPlugin:
    """A record and where it came from; ``source`` is a module or an entry point, ``distribution`` its package."""

    record: Plugin
    source: str
    distribution: str


@dataclass(frozen=True, slots=True)
class BrokenPlugin:
    """A plugin that could not be used, and why in one line; ``offers`` are kinds and names, as far as it told them."""

    source: str
    reason: str
    distribution: str | None = None
    offers: tuple[tuple[str, str], ...] = ()

    def may_offer(self, kind: str, name: str) -> bool:
        """Whether a plugin of this kind and name is missing because of this one."""
        if self.offers:
            return (kind, name) in self.offers
        # What it would have offered is not known: its own name, or the distribution's, is all there is to go by.
        return name == self.source.partition(" ")[0] or (
            self.distribution is not None and _DISTRIBUTION_OF.get((kind, name)) == self.distribution
        )


class PluginRegistry:
    """All usable plugins. A broken third-party plugin is one warning and an entry in ``broken``, never a crash.

    Args:
        allow: entry point names to load; None for all.
        modules: importable modules to load as plugins.
        entry_points: overrides the installed entry points, for tests.
        clock: what imports are timed with.
    """

    def __init__(
        self,
        *,
        allow: Iterable[str] | None = None,
        modules: Iterable[str] = (),
        entry_points: Iterable[metadata.EntryPoint] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._clock = clock or WallClock()
        self._manager = pluggy.PluginManager(hookspecs.PROJECT_NAME)
        self._manager.add_hookspecs(hookspecs)
        self._plugins: dict[str, dict[str, RegisteredPlugin]] = {kind: {} for kind in PLUGIN_KINDS}
        self.broken: list[BrokenPlugin] = []
        self._add(importlib.import_module(_BUILTIN), _BUILTIN, "lmcache-kit", thorough=False)
        if entry_points is None:
            entry_points = metadata.entry_points(group=hookspecs.ENTRY_POINT_GROUP)
        allowed = None if allow is None else set(allow)
        for point in sorted(entry_points, key=lambda point: point.name):
            if allowed is None or point.name in allowed:
                distribution = point.dist.name if point.dist is not None else None
                self._load(point.load, f"{point.name} ({point.value})", point.value.partition(":")[0], distribution)
        for module in modules:
            self._load(functools.partial(importlib.import_module, module), module, module, None)

    def _load(self, load: Any, source: str, module_name: str, distribution: str | None) -> None:
        began = self._clock.now()
        try:
            try:
                module = load()
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a plugin's import may raise anything, and may try to end the program
                raise import_failure(error, module_name, distribution) from None
            seconds = self._clock.now() - began
            self._add(module, source, distribution or ("none (-p)" if source == module_name else "unknown"))
        except PluginError as error:
            reason = " ".join(error.detail.split())
            self.broken.append(BrokenPlugin(source, reason, distribution, getattr(error, "offers", ())))
            log.warning("plugin %s is not used: %s", source, reason)
            return
        if seconds > SLOW_IMPORT_SECONDS:
            log.warning(
                "plugin %s took %.1f s to import, and every command waits for it: heavy imports belong into factories",
                source,
                seconds,
            )

    def _add(self, module: Any, source: str, distribution: str, *, thorough: bool = True) -> None:
        if self._manager.is_registered(module):
            return
        check_hooks(module, _HOOK_OF_KIND.values())
        try:
            self._manager.register(module, name=source)
        except (ValueError, pluggy.PluginValidationError) as error:
            raise PluginError(f"pluggy refused it: {one_line(error)}") from None
        records: list[Plugin] = []
        try:
            for kind, hook in _HOOK_OF_KIND.items():
                implementation: Any = getattr(module, hook, None)
                if is_hook(implementation):
                    given = records_of(implementation, hook, kind)
                    records += (record for record in given if isinstance(record, Plugin))
                    for record in given:
                        check_record(record, hook, kind, thorough=thorough)
            self._check_names(records)
        except PluginError as error:
            self._manager.unregister(module)
            error.offers = tuple((record.kind, record.name) for record in records)  # type: ignore[attr-defined]
            raise
        for record in records:
            self._plugins[record.kind][record.name] = RegisteredPlugin(record, source, distribution)

    def _check_names(self, records: list[Plugin]) -> None:
        names = [(record.kind, record.name) for record in records]
        for kind, name in names:
            if names.count((kind, name)) > 1:
                raise PluginError(f"it offers {kind} {name!r} twice", hint="every record needs a name of its own")
            known = self._plugins[kind].get(name)
            if known is not None:
                raise PluginError(
                    f"{kind} {name!r} is already registered by {known.source}",
                    hint=f"rename it, or leave one of them out with {ALLOW_VARIABLE}",
                )

    def kinds(self) -> list[str]:
        """All kinds of plugins."""
        return list(self._plugins)

    def all(self, kind: str) -> list[RegisteredPlugin]:
        """Every plugin of one kind, by name. Raises UnknownNameError for an unknown kind."""
        if kind not in self._plugins:
            raise UnknownNameError("plugin kind", kind, self._plugins)
        return [self._plugins[kind][name] for name in sorted(self._plugins[kind])]

    def names(self, kind: str) -> list[str]:
        """Names of one kind, sorted."""
        return [entry.record.name for entry in self.all(kind)]

    def get(self, record_type: type[P], name: str) -> P:
        """The record called ``name``.

        Raises UnknownNameError with the known names, the nearest one and, when we know it, how to install it.
        """
        kind = record_type.kind
        entry = self._plugins[kind].get(name)
        if entry is None:
            distribution = _DISTRIBUTION_OF.get((kind, name))
            error = UnknownNameError(f"{kind} plugin", name, self.names(kind))
            broken = [each for each in self.broken if each.may_offer(kind, name)]
            if broken:
                error.hint = f"plugin {broken[0].source} is not used: {broken[0].reason}; {error.hint}"
            elif distribution:
                error.hint = f"pip install {distribution}; {error.hint}"
            elif self.broken:
                error.hint = f"{error.hint}; not used: {', '.join(each.source for each in self.broken)}"
            raise error
        record = entry.record
        assert isinstance(record, record_type)
        return record

    def find(self, name: str) -> list[RegisteredPlugin]:
        """Plugins of any kind called ``name``."""
        return [plugins[name] for plugins in self._plugins.values() if name in plugins]

    def refused(self, name: str) -> list[BrokenPlugin]:
        """Broken plugins because of which there is no plugin called ``name``, of whatever kind."""
        return [broken for broken in self.broken if any(broken.may_offer(kind, name) for kind in self._plugins)]

    @staticmethod
    def options(record: Plugin, values: Mapping[str, Any] | None = None) -> Options:
        """The plugin's options from plain values. Raises ConfigError naming the plugin and the wrong option."""
        values = dict(values or {})
        known = {field.encode_name for field in msgspec.structs.fields(record.options)}
        for name in values:
            if name not in known:
                near = nearest(name, known)
                raise ConfigError(
                    f"{record.kind} plugin {record.name!r} has no option {name!r}",
                    hint=f"did you mean {near!r}?" if near else f"its options: {', '.join(sorted(known)) or 'none'}",
                )
        try:
            return msgspec.convert(values, record.options)
        except msgspec.ValidationError as error:
            raise ConfigError(f"options of {record.kind} plugin {record.name!r}: {error}") from None


@functools.cache
def registry() -> PluginRegistry:
    """The registry of this process, made once from the environment."""
    allow = os.environ.get(ALLOW_VARIABLE)
    modules = os.environ.get(MODULES_VARIABLE, "")
    return PluginRegistry(
        allow=None if allow is None else [name.strip() for name in allow.split(",") if name.strip()],
        modules=[name.strip() for name in modules.split(",") if name.strip()],
    )
