"""The cells of a sweep: every combination of the values that are varied."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import yaml

from lmcache_kit.errors import ConfigError
from lmcache_kit.scenario.document import parse_value

__all__ = ["Axis", "cells", "override", "parse_axes", "parse_axis", "shown_value"]

_ONE_LINE = 2**31


@dataclass(frozen=True, slots=True)
class Axis:
    """A path of the scenario and the values that it takes, in order."""

    path: str
    values: tuple[Any, ...]


def parse_axes(texts: Sequence[str]) -> list[Axis]:
    """The axis of each text. Raises ConfigError, also when two have the same path."""
    axes = [parse_axis(text) for text in texts]
    paths = [axis.path for axis in axes]
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError(f"--vary names {path} twice", hint=f"give all its values at once: --vary {path}=V1,V2")
    return axes


def parse_axis(text: str) -> Axis:
    """The axis ``PATH=V1,V2``, or ``PATH=[V1, V2]`` where values hold commas. Raises ConfigError."""
    path, equals, listed = text.partition("=")
    path = path.strip()
    if not equals or not path or not listed.strip():
        raise ConfigError(
            f"--vary {text!r} is not PATH=V1,V2", hint="write it like --vary instance_defaults.chunk_size=64,256"
        )
    try:
        values = _values(listed)
    except ConfigError as error:
        raise ConfigError(f"--vary {text}: {error.message}", hint=error.hint) from None
    for value in values:
        if _count(values, value) > 1:
            raise ConfigError(f"--vary {text}: {shown_value(value)} stands twice", hint="leave one out")
    return Axis(path, tuple(values))


def cells(axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """Varied path to value of each cell; the last axis changes fastest. One empty cell without axes."""
    paths = [axis.path for axis in axes]
    return [dict(zip(paths, values, strict=True)) for values in itertools.product(*(axis.values for axis in axes))]


def override(path: str, value: Any) -> str:
    """What ``--set`` takes to give ``path`` this very value. Raises ConfigError for what has no such text."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=_ONE_LINE)
    text = text.removesuffix("\n").removesuffix("\n...")
    if _differ(parse_value(text), value):
        raise ConfigError(
            f"{path} cannot be set to {value!r}", hint="--vary takes plain text, numbers, lists and mappings"
        )
    return f"{path}={text}"


def shown_value(value: Any) -> str:
    """A value as a table and a CSV file show it: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _values(listed: str) -> list[Any]:
    if listed.lstrip().startswith("["):
        values = parse_value(listed)
        if not isinstance(values, list) or not values:
            raise ConfigError("the list holds no values")
        return values
    pieces = listed.split(",")
    if any(not piece.strip() for piece in pieces):
        raise ConfigError("there is an empty value", hint="a value that is meant to be empty is written ''")
    return [parse_value(piece) for piece in pieces]


def _count(values: Sequence[Any], value: Any) -> int:
    return sum(not _differ(value, other) for other in values)


def _differ(a: Any, b: Any) -> bool:
    # To Python 1, 1.0 and true are equal.
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() != b.keys() or any(_differ(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) != len(b) or any(map(_differ, a, b))
    return type(a) is not type(b) or bool(a != b)
