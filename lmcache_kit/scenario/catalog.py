"""Where scenarios are found: a path first, then the ones that ship with lmcache-kit."""

from __future__ import annotations

from pathlib import Path

from lmcache_kit.errors import ConfigError, nearest

__all__ = ["find_scenario", "shipped_folder", "shipped_scenarios"]

_PACKAGE = Path(__file__).resolve().parent.parent
_SUFFIXES = (".yaml", ".yml")


def shipped_folder() -> Path:
    """The folder of shipped scenarios: inside an installed wheel, beside the package in a checkout."""
    inside = _PACKAGE / "_scenarios"
    return inside if inside.is_dir() else _PACKAGE.parent / "scenarios"


def shipped_scenarios() -> dict[str, Path]:
    """Every shipped scenario's file by name."""
    folder = shipped_folder()
    return {path.stem: path for path in sorted(folder.glob("*")) if path.suffix in _SUFFIXES}


def find_scenario(name: str) -> Path:
    """The file that ``name`` means: an existing path, or a shipped scenario. Raises ConfigError."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_scenarios()
    # Before folders: someone who runs a scenario into a folder of its name must be able to run it again.
    if name in shipped:
        return shipped[name]
    if path.is_dir():
        raise ConfigError(f"{name!r} is a folder, not a scenario", hint="name a YAML file")
    near = nearest(path.stem, shipped)
    known = ", ".join(shipped) or "none"
    raise ConfigError(
        f"there is no scenario {name!r}, neither a file nor a shipped one",
        hint=f"did you mean {near!r}? shipped: {known}" if near else f"shipped: {known}",
    )
