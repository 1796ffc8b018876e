"""``--set path=value``: change one value of a scenario before it is checked.

A path is dotted: keys, list positions, or the ``id`` or ``name`` of a list's entry, as in
``instances.0.chunk_size=64``, ``instances.a.chunk_size=64`` or ``workloads.serve.max_tokens=8``. The value is YAML,
so it has a type. A path that the scenario cannot have is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec.inspect import Type

from lmcache_kit.errors import ConfigError, nearest
from lmcache_kit.scenario.document import join, parse_value
from lmcache_kit.scenario.shape import child, is_free, is_list, scenario_type

__all__ = ["apply_overrides", "set_value", "split_override"]


def split_override(text: str) -> tuple[str, Any]:
    """Path and value of ``path=value``. Raises ConfigError."""
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals or not path:
        raise ConfigError(f"--set {text!r} is not path=value", hint="write it like --set instances.0.chunk_size=64")
    # To YAML, "> 1" would begin a folded text.
    is_comparison = path.startswith("expect.") and value.lstrip().startswith(("=", "!", "<", ">"))
    return path, value if is_comparison else parse_value(value)


def apply_overrides(data: dict[str, Any], overrides: Iterable[str]) -> None:
    """Apply each override in order, changing ``data``."""
    for override in overrides:
        path, value = split_override(override)
        try:
            set_value(data, path, value)
        except ConfigError as error:
            raise ConfigError(f"--set {override}: {error.message}", hint=error.hint) from None


def set_value(data: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path, making the mappings on the way. Raises ConfigError for an unknown path."""
    keys = path.split(".")
    if any(not key for key in keys):
        raise ConfigError(f"{path!r} has an empty part")
    if keys[0] == "expect" and len(keys) > 1:
        # The keys of `expect` are dotted paths themselves.
        keys = ["expect", ".".join(keys[1:])]
    kind, here, walked = scenario_type(), data, ""
    for key in keys[:-1]:
        kind = child(kind, key, walked)
        here = _enter(here, key, walked, kind)
        walked = join(walked, key)
    child(kind, keys[-1], walked)
    _assign(here, keys[-1], walked, value)


def _enter(here: Any, key: str, walked: str, kind: Type) -> Any:
    """The value below ``key``, of type ``kind``, made when there is none."""
    if isinstance(here, list):
        return here[_index(here, key, walked)]
    if not isinstance(here, dict):
        raise ConfigError(f"{walked!r} is a single value, so {join(walked, key)!r} cannot exist")
    below = here.get(key)
    if below is None:
        below = here[key] = [] if is_list(kind) else {}
    elif isinstance(below, str) and not is_free(kind):
        # `launcher: local` is short for `launcher: {kind: local}`.
        below = here[key] = {"kind": below}
    return below


def _assign(here: Any, key: str, walked: str, value: Any) -> None:
    if isinstance(here, list):
        here[_index(here, key, walked)] = value
    elif isinstance(here, dict):
        here[key] = value
    else:
        raise ConfigError(f"{walked!r} is a single value, so {join(walked, key)!r} cannot exist")


def _index(entries: list[Any], key: str, walked: str) -> int:
    if key.isdecimal():
        if int(key) >= len(entries):
            raise ConfigError(f"{join(walked, key)!r} does not exist: {walked!r} has {len(entries)} entries")
        return int(key)
    labels = [_label(entry) for entry in entries]
    if key in labels:
        return labels.index(key)
    known = [label for label in labels if label is not None]
    near = nearest(key, known)
    if near is not None:
        hint = f"did you mean {join(walked, near)!r}?"
    else:
        hint = f"use a position from 0 to {len(entries) - 1}{' or one of ' + ', '.join(known) if known else ''}"
    raise ConfigError(f"{join(walked, key)!r} does not exist", hint=hint)


def _label(entry: Any) -> str | None:
    if isinstance(entry, dict):
        label = entry.get("id", entry.get("name"))
        return label if isinstance(label, str) else None
    return None
