"""From templates to a folder that ``pip install`` takes."""

from __future__ import annotations

import re
import string
import textwrap
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath

import msgspec

from lmcache_kit import __version__
from lmcache_kit.errors import ConfigError, ConflictError
from lmcache_kit.hookspecs import ENTRY_POINT_GROUP
from lmcache_kit.plugin_templates.names import PluginNames

__all__ = ["KindText", "kind_text", "write_plugin"]

_SUFFIX = ".tmpl"
_WIDTH = 115
# Names that a template cannot have itself: a wheel with tests or hidden files in it looks like a mistake.
_PLACES = {
    "conformance.py": "tests/test_conformance.py",
    "gitignore": ".gitignore",
    "workflow.yaml": ".github/workflows/test.yaml",
}
# Files that stand beside the package; every other one is part of it.
_BESIDE = {"pyproject.toml", "README.md", "scenario.yaml", "requests.jsonl"}


class KindText(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the texts of one kind's distribution say (``kind.json`` beside its templates).

    Args:
        summary: one line for ``plugins list`` and the distribution's description.
        dependencies: distributions that the template imports besides lmcache-kit.
        does: what it does, for the README.
        change: what an author changes first, for the README.
        files: the modules of the package besides ``plugin.py``, and what each holds.
    """

    summary: str
    does: str
    change: str
    files: dict[str, str]
    dependencies: list[str] = []


def kind_text(kind: str) -> KindText:
    """The texts of a kind."""
    return msgspec.json.decode(_folder(kind).joinpath("kind.json").read_bytes(), type=KindText)


def write_plugin(names: PluginNames, kind: str, target: Path) -> list[PurePosixPath]:
    """Write the distribution of a plugin of ``kind`` into the folder ``target``; the files, relative to it, sorted.

    Raises ConflictError when ``target`` is a file or holds anything, ConfigError when it cannot be written. Everything
    is made before the first file is written.
    """
    files = {
        _place(template.name.removesuffix(_SUFFIX), names): _filled(template, names, kind)
        for folder in (_folder("common"), _folder(kind))
        for template in folder.iterdir()
        if template.name.endswith(_SUFFIX)
    }
    files[PurePosixPath(names.package, "py.typed")] = ""
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ConflictError(f"{target} exists and is not an empty folder", hint="choose another with --directory")
        for path, text in files.items():
            place = target / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror}") from None
    return sorted(files)


def _folder(name: str) -> Traversable:
    return resources.files("lmcache_kit.plugin_templates").joinpath(name)


def _place(name: str, names: PluginNames) -> PurePosixPath:
    if name in _PLACES:
        return PurePosixPath(_PLACES[name])
    return PurePosixPath(name) if name in _BESIDE else PurePosixPath(names.package, name)


def _filled(template: Traversable, names: PluginNames, kind: str) -> str:
    text = kind_text(kind)
    filled = string.Template(template.read_text(encoding="utf-8")).substitute(
        distribution=names.distribution,
        package=names.package,
        scheme=names.scheme,
        class_name=names.class_name,
        kind=kind,
        group=ENTRY_POINT_GROUP,
        version=_release(__version__),
        summary=text.summary,
        does=textwrap.fill(text.does, _WIDTH),
        change=text.change,
        files="".join(f"| `{names.package}/{name}` | {what} |\n" for name, what in text.files.items()),
        dependencies="".join(f'  "{each}",\n' for each in text.dependencies),
    )
    return re.sub(r"\n{4,}", "\n\n\n", filled)


def _release(version: str) -> str:
    """``0.1`` of ``0.1.0``: any release with the plugin API that this one has."""
    return ".".join(version.split(".")[:2])
