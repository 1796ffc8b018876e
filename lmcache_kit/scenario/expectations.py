"""What a scenario expects of its results.

A key is ``RESULT.PATH``, e.g. ``read_back.text_equal`` or ``serve.ttft_seconds.p50``. A value is what must stand
there: a number, a truth value, null or a text; or a text that starts with an operator:

.. code-block:: text

    comparison = operator operand
    operator   = "==" | "!=" | "<=" | ">=" | "<" | ">"
    operand    = number | "true" | "false" | "null" | quoted text | RESULT.PATH of another result

Nothing is ever evaluated as code.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmcache_kit.errors import ConfigError, nearest

__all__ = ["Expectation", "Outcome", "evaluate", "parse_expectations"]

Scalar = bool | int | float | str | None

_COMPARISON = re.compile(r"\s*(==|!=|<=|>=|<|>)\s*(.*?)\s*", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
_WORDS: dict[str, Scalar] = {"true": True, "false": False, "null": None}
_ORDERED: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Reference:
    """A value of another result."""

    path: str


@dataclass(frozen=True, slots=True)
class Expectation:
    """``path`` must stand in relation ``op`` to ``operand``; ``wanted`` is how the scenario wrote it."""

    path: str
    op: str
    operand: Scalar | Reference
    wanted: Scalar


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether an expectation was met.

    ``got`` is the value found, ``problem`` why it could not be compared, ``against`` the value of another result that
    the scenario compares with.
    """

    path: str
    wanted: Scalar
    got: Any
    met: bool
    problem: str | None = None
    against: Any = None


def parse_expectations(expect: Mapping[str, Scalar], results: Sequence[str]) -> list[Expectation]:
    """Check the expectations of a scenario whose results will be called ``results``. Raises ConfigError."""
    return [_parse(path, wanted, results) for path, wanted in expect.items()]


def evaluate(expectations: Sequence[Expectation], results: Mapping[str, Mapping[str, Any]]) -> list[Outcome]:
    """Compare with the values of each result, by name. A value that is not there is a miss."""
    return [_evaluate(expectation, results) for expectation in expectations]


def _parse(path: str, wanted: Scalar, results: Sequence[str]) -> Expectation:
    _check_path(path, path, results)
    match = _COMPARISON.fullmatch(wanted) if isinstance(wanted, str) else None
    if match is None:
        return Expectation(path, "==", wanted, wanted)
    op, text = match[1], match[2]
    operand = _operand(path, text, results)
    if op in _ORDERED and not isinstance(operand, Reference) and not _is_number(operand):
        raise ConfigError(f"expect.{path}: {op} needs a number, not {text!r}")
    return Expectation(path, op, operand, wanted)


def _operand(path: str, text: str, results: Sequence[str]) -> Scalar | Reference:
    if _NUMBER.fullmatch(text):
        return float(text) if any(sign in text for sign in ".eE") else int(text)
    if text in _WORDS:
        return _WORDS[text]
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if "." in text and text.split(".")[0] in results:
        _check_path(text, path, results)
        return Reference(text)
    raise ConfigError(
        f"expect.{path}: {text!r} cannot be compared with",
        hint="write a number, true, false, null, a quoted text or RESULT.PATH of another result",
    )


def _check_path(text: str, path: str, results: Sequence[str]) -> None:
    name, dot, rest = text.partition(".")
    if not dot or not all(rest.split(".")):
        raise ConfigError(f"expect.{path}: {text!r} is not RESULT.PATH", hint="e.g. read_back.text_equal")
    if name not in results:
        near = nearest(name, results)
        raise ConfigError(
            f"expect.{path}: no workload is called {name!r}",
            hint=f"did you mean {near!r}?" if near else f"workloads: {', '.join(results)}",
        )


def _evaluate(expectation: Expectation, results: Mapping[str, Mapping[str, Any]]) -> Outcome:
    def outcome(got: Any, met: bool, problem: str | None = None) -> Outcome:
        return Outcome(expectation.path, expectation.wanted, got, met, problem, against)

    against = None
    try:
        got = _find(expectation.path, results)
        operand = expectation.operand
        if isinstance(operand, Reference):
            operand = against = _find(operand.path, results)
    except LookupError as error:
        return outcome(None, False, str(error.args[0]))
    if expectation.op in _ORDERED:
        for value in (got, operand):
            if not _is_number(value):
                return outcome(got, False, f"{value!r} is not a number")
        return outcome(got, _ORDERED[expectation.op](got, operand))
    equal = _equal(got, operand)
    return outcome(got, equal if expectation.op == "==" else not equal)


def _find(path: str, results: Mapping[str, Mapping[str, Any]]) -> Any:
    name, _, rest = path.partition(".")
    if name not in results:
        raise LookupError(f"there is no result {name!r}")
    here: Any = results[name]
    walked = name
    for key in rest.split("."):
        if isinstance(here, Mapping) and key in here:
            here = here[key]
        elif isinstance(here, Sequence) and not isinstance(here, str) and key.isdecimal() and int(key) < len(here):
            here = here[int(key)]
        else:
            known = ", ".join(map(str, here)) if isinstance(here, Mapping) else "no such entries"
            raise LookupError(f"{walked} has no {key!r}; it has {known}")
        walked = f"{walked}.{key}"
    return here


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _equal(got: Any, wanted: Scalar) -> bool:
    # In Python True == 1, which would let a count of 1 pass for a truth value.
    if isinstance(got, bool) or isinstance(wanted, bool):
        return isinstance(got, bool) and isinstance(wanted, bool) and got == wanted
    return bool(got == wanted)
