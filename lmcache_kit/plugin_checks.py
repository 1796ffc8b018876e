"""What a plugin gives, looked at before it is used; whatever is wrong is one line that says what to do."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from lmcache_kit.contracts.records import API_VERSION, PLUGIN_KINDS, Options, Plugin
from lmcache_kit.errors import PluginError, nearest

__all__ = ["check_hooks", "check_record", "import_failure", "is_hook", "one_line", "records_of"]

_NAME = re.compile(r"[a-z0-9_]+")
_LONGEST = 300
_TEXT: dict[str, tuple[type, ...]] = {"str": (str,), "str | None": (str, type(None))}

# What a factory of each kind is called with, by position.
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(PLUGIN_KINDS, ("options",)),
    "storage": ("options", "context"),
    "engine": ("options", "model"),
    "eviction": ("options", "capacity_bytes"),
}
_SERVER_ARGUMENTS = ("options", "spec")


def one_line(error: BaseException) -> str:
    """Class and text of any error, in one line of bearable length."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # its author may have broken that as well
        text = ""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def import_failure(error: BaseException, module: str, distribution: str | None) -> PluginError:
    """What the failed import of a plugin's ``module`` means."""
    leave_out = f"update or uninstall {distribution}" if distribution else "mend it, or leave out its -p"
    if isinstance(error, ModuleNotFoundError) and error.name:
        missing, own = error.name.partition(".")[0], module.partition(".")[0]
        if missing != own:
            return PluginError(
                f"its import failed: {one_line(error)}", hint=f"install what it needs, e.g. pip install {missing}"
            )
        hint = f"install {distribution} again" if distribution else f"is {module} on PYTHONPATH?"
        return PluginError(f"its import failed: {one_line(error)}", hint=hint)
    if isinstance(error, SyntaxError):
        return PluginError(f"its import failed: {one_line(error)}", hint=f"{leave_out}; this Python cannot read it")
    if isinstance(error, SystemExit):
        return PluginError(
            f"its import failed: {one_line(error)}: it wanted to end the program",
            hint="keep what runs below `if __name__ == '__main__':`",
        )
    return PluginError(f"its import failed: {one_line(error)}", hint=leave_out)


def is_hook(implementation: object) -> bool:
    """Whether it was marked with ``hookimpl``."""
    return getattr(implementation, "lmcache_kit_impl", None) is not None


def check_hooks(module: Any, hooks: Iterable[str]) -> None:
    """Raise PluginError for hooks of a module that are misspelt, not marked, or take arguments."""
    known = list(hooks)
    for name in (name for name in dir(module) if name.startswith("lmcache_kit_")):
        implementation = getattr(module, name)
        if is_hook(implementation) and name not in known:
            near = nearest(name, known)
            raise PluginError(
                f"{name} is not a hook", hint=f"did you mean {near}?" if near else "see lmcache_kit.hookspecs"
            )
        if name not in known or hasattr(implementation, "lmcache_kit_spec"):
            continue
        if not is_hook(implementation):
            raise PluginError(f"{name} is not marked as a hook", hint="write @hookimpl above it, from lmcache_kit")
        wanted = [
            parameter.name
            for parameter in _parameters(implementation)
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        if wanted:
            raise PluginError(
                f"its hook {name} wants the argument {wanted[0]!r}", hint=f"hooks take none: def {name}():"
            )


def records_of(implementation: Callable[[], Any], hook: str, kind: str) -> list[Any]:
    """What a hook gives, as a list. Raises PluginError when it raises, also half way, or gives no records."""
    want = PLUGIN_KINDS[kind].__name__
    try:
        given = implementation()
        if given is not None and not isinstance(given, Plugin) and not inspect.iscoroutine(given):
            return list(given)
    except (Exception, SystemExit) as error:  # third-party code
        hint = "was the plugin written for this version of lmcache-kit?" if isinstance(error, TypeError) else None
        raise PluginError(f"its hook {hook} raised {one_line(error)}", hint=hint) from None
    if inspect.iscoroutine(given):
        given.close()
        raise PluginError(f"its hook {hook} is a coroutine", hint=f"write def, not async def: yield {want}(...)")
    if given is None:
        raise PluginError(f"its hook {hook} returned nothing", hint=f"yield {want}(...), or return a list of them")
    raise PluginError(
        f"its hook {hook} returned one {type(given).__name__}, not several", hint="yield it, or return it in a list"
    )


def check_record(record: object, hook: str, kind: str, *, thorough: bool) -> None:
    """Raise PluginError naming the field of a record that is not what its kind says.

    ``thorough`` makes the JSON Schema of its options too, which takes a while.
    """
    want = PLUGIN_KINDS[kind]
    if not isinstance(record, want):
        raise PluginError(f"its hook {hook} returned {type(record).__name__}, not {want.__name__}")
    who = f"{kind} {record.name!r}"
    if record.api_version != API_VERSION:  # before all else: another API has other fields
        newer = isinstance(record.api_version, int) and record.api_version > API_VERSION
        raise PluginError(
            f"{who} was written for plugin API {record.api_version}, this lmcache-kit has {API_VERSION}",
            hint="upgrade lmcache-kit" if newer else "install the plugin's release for this version",
        )
    if not isinstance(record.name, str) or not _NAME.fullmatch(record.name):
        raise PluginError(f"{who} has a name that cannot be used", hint="lower-case letters, digits and underscores")
    if not isinstance(record.summary, str) or "\n" in record.summary:
        raise PluginError(f"the summary of {who} is not one line of text", hint=f"it is {record.summary!r:.60}")
    _check_options(record, who, thorough=thorough)
    if isinstance(record.capabilities, str) or not isinstance(record.capabilities, frozenset | set):
        raise PluginError(
            f"the capabilities of {who} are {record.capabilities!r:.60}", hint='write frozenset({"name"})'
        )
    server = getattr(record, "server", None)
    if server is None:
        _check_factory(record, who, "factory", _ARGUMENTS[kind])
    elif getattr(record, "factory", None) is not None:
        raise PluginError(f"{who} has both a factory and a server", hint="it is made here, or runs by itself")
    else:
        _check_factory(record, who, "server", _SERVER_ARGUMENTS)
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        # Annotations are text here: types behind them are not imported to look at a record.
        if field.type in _TEXT and not isinstance(value, _TEXT[str(field.type)]):
            raise PluginError(f"the {field.name} of {who} is {value!r:.60}", hint="it must be text")
        if field.name in ("location", "scheme") and not value:
            raise PluginError(f"the {field.name} of {who} is empty", hint="give it a name")
        if field.name == "clocks" and not (isinstance(value, frozenset | set) and value <= {"wall", "virtual"}):
            raise PluginError(f"the clocks of {who} are {value!r:.60}", hint='write frozenset({"wall", "virtual"})')


def _check_options(record: Plugin, who: str, *, thorough: bool) -> None:
    options = record.options
    if not (isinstance(options, type) and issubclass(options, Options)):
        raise PluginError(
            f"the options of {who} are {options!r:.80}, which is no subclass of Options",
            hint="class MyOptions(Options, frozen=True), and options=MyOptions",
        )
    if not thorough:
        return
    try:
        msgspec.json.schema(options)
        msgspec.convert({}, options)
    except msgspec.ValidationError:
        return  # an option that has to be given
    except Exception as error:  # msgspec raises several kinds, and defaults may be made by a plugin's functions
        raise PluginError(
            f"the options of {who} cannot be described: {one_line(error)}",
            hint="use numbers, text, booleans, lists, mappings, Literal and msgspec structs",
        ) from None


def _check_factory(record: Plugin, who: str, name: str, arguments: tuple[str, ...]) -> None:
    """Whether the callable in the field ``name`` takes ``arguments`` by position."""
    factory = getattr(record, name, None)
    call = f"{name}({', '.join(arguments)})"
    if not callable(factory):
        raise PluginError(f"the {name} of {who} is {factory!r:.60}", hint=f"it is called as {call}")
    parameters = _parameters(factory)
    if parameters is _UNKNOWN:
        return
    by_position = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    required = [each.name for each in by_position[len(arguments) :] if each.default is each.empty]
    required += [each.name for each in parameters if each.kind is each.KEYWORD_ONLY and each.default is each.empty]
    if required:
        raise PluginError(
            f"the {name} of {who} wants one more argument {required[0]!r}", hint=f"it is called as {call}"
        )
    takes_rest = any(each.kind is each.VAR_POSITIONAL for each in parameters)
    if len(by_position) < len(arguments) and not takes_rest:
        surplus = arguments[len(by_position)]
        raise PluginError(f"the {name} of {who} takes no argument for {surplus!r}", hint=f"it is called as {call}")


_UNKNOWN: list[inspect.Parameter] = []


def _parameters(function: Any) -> list[inspect.Parameter]:
    try:
        signature: Mapping[str, inspect.Parameter] = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some that are written in C do not tell
        return _UNKNOWN
    return list(signature.values())
