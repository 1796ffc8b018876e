"""One name as a distribution, a package, a class and a plugin spell it."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from dataclasses import dataclass

from lmcache_kit.errors import ConfigError, ConflictError
from lmcache_kit.plugins import PluginRegistry

__all__ = ["PluginNames", "plugin_names"]

_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")
_LONGEST = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginNames:
    """The spellings of one name.

    Args:
        distribution: what ``pip install`` is given, e.g. ``my-codec``.
        package: the importable package and the plugin's name in scenarios, e.g. ``my_codec``.
        scheme: what addresses of a transport begin with, e.g. ``my-codec``.
        class_name: e.g. ``MyCodec``.
    """

    distribution: str
    package: str
    scheme: str
    class_name: str


def plugin_names(name: str, kind: str, registry: PluginRegistry) -> PluginNames:
    """The spellings of ``name``, which may have dashes or underscores.

    Raises ConfigError for a name that cannot be a package, ConflictError for one that a plugin of this kind or an
    installed package has already.
    """
    if _NAME.fullmatch(name) is None or len(name) > _LONGEST:
        raise ConfigError(
            f"{name!r} cannot name a plugin", hint=f"{_suggestion(name)}lower-case letters, digits and single dashes"
        )
    words = re.split("[-_]", name)
    package = "_".join(words)
    if keyword.iskeyword(package) or keyword.issoftkeyword(package):
        raise ConfigError(f"{name!r} is a word of Python, no package can have it", hint=f"try {name}-{kind}")
    if package in registry.names(kind):
        [known] = [entry for entry in registry.find(package) if entry.record.kind == kind]
        raise ConflictError(f"{kind} {package!r} is already registered by {known.source}", hint="choose another name")
    if package in sys.stdlib_module_names or importlib.util.find_spec(package) is not None:
        raise ConflictError(
            f"a package called {package!r} can be imported already, and the new one would hide it",
            hint=f"choose another name, for example {'-'.join(words)}-{kind}",
        )
    return PluginNames(
        distribution="-".join(words),
        package=package,
        scheme="-".join(words),
        class_name="".join(word.capitalize() for word in words),
    )


def _suggestion(name: str) -> str:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
    repaired = re.sub(r"[^a-z0-9]+", "-", spaced).lstrip("-0123456789").rstrip("-")[:_LONGEST].rstrip("-")
    return f"did you mean {repaired!r}? " if repaired else ""
