"""What may stand at a dotted path of a scenario, read off the model's types.

Both the loader (unknown keys) and ``--set`` (unknown paths) ask here, so they cannot disagree.
"""

from __future__ import annotations

import functools
from typing import Any

import msgspec
from msgspec import inspect

from lmcache_kit.errors import ConfigError, nearest
from lmcache_kit.scenario.document import join
from lmcache_kit.scenario.model import Scenario, WorkloadSpec

__all__ = ["check_keys", "child", "dotted", "is_free", "is_list", "scenario_type"]


@functools.cache
def scenario_type() -> inspect.Type:
    """The description of :class:`Scenario`."""
    return inspect.type_info(Scenario)


def child(kind: inspect.Type, key: str, path: str) -> inspect.Type:
    """The type below ``key`` of a value of type ``kind`` at ``path``.

    Raises ConfigError with the nearest key when nothing may stand there.
    """
    plain = _container(kind)
    if isinstance(plain, inspect.StructType):
        fields = {field.encode_name: field.type for field in plain.fields}
        if plain.cls is WorkloadSpec:
            # A workload's options stand beside its name and kind; the plugin itself checks them later.
            return fields[key] if key in ("name", "kind") else inspect.AnyType()
        if key not in fields:
            near = nearest(key, fields)
            known = ", ".join(fields)
            raise ConfigError(
                f"unknown key {join(path, key)!r}",
                hint=f"did you mean {join(path, near)!r}?" if near else f"{path or 'a scenario'} takes: {known}",
            )
        return fields[key]
    if isinstance(plain, inspect.ListType):
        return plain.item_type
    if isinstance(plain, inspect.DictType):
        return plain.value_type
    if isinstance(plain, inspect.TupleType) and key.isdigit() and int(key) < len(plain.item_types):
        return plain.item_types[int(key)]
    if isinstance(plain, inspect.AnyType):
        return plain
    raise ConfigError(f"{path!r} is a single value, so {join(path, key)!r} cannot exist")


def is_free(kind: inspect.Type) -> bool:
    """Whether anything may stand below a value of this type: plugin options and pass-through settings."""
    plain = _container(kind)
    return isinstance(plain, inspect.AnyType) or (
        isinstance(plain, inspect.DictType) and isinstance(plain.value_type, inspect.AnyType)
    )


def is_list(kind: inspect.Type) -> bool:
    """Whether a list stands there."""
    return isinstance(_container(kind), inspect.ListType)


def check_keys(value: Any, kind: inspect.Type, path: str = "") -> None:
    """Raise ConfigError for the first key that the type does not know, with its path and the nearest key."""
    if is_free(kind):
        return
    if isinstance(value, dict):
        for key, below in value.items():
            check_keys(below, child(kind, key, path), join(path, key))
    elif isinstance(value, list) and isinstance(_container(kind), inspect.ListType):
        for index, below in enumerate(value):
            check_keys(below, child(kind, str(index), path), join(path, index))


def _container(kind: inspect.Type) -> inspect.Type:
    """``kind`` without its metadata, and without ``| None`` where it is optional."""
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        for each in kind.types:
            plain = _container(each)
            if isinstance(plain, inspect.StructType | inspect.ListType | inspect.DictType | inspect.AnyType):
                return plain
    return kind


def dotted(error: msgspec.ValidationError) -> tuple[str, str]:
    """``(path, problem)`` of a msgspec error, the path dotted as ``--set`` takes it."""
    text = str(error)
    problem, found, where = text.rpartition(" - at `")
    if not found:
        return "", text
    path = where.rstrip("`").removeprefix("$").replace("[...]", "").replace("[", ".").replace("]", "")
    return path.removeprefix("."), problem
