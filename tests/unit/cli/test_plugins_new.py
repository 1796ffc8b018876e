"""``plugins new``: what it writes, for which names, and what it never touches."""

from __future__ import annotations

import ast
import json
import keyword
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lmcache_kit.cli import main
from lmcache_kit.contracts import PLUGIN_KINDS
from lmcache_kit.errors import ConfigError, ConflictError, LMCacheKitError
from lmcache_kit.plugin_templates import PluginNames, plugin_names, write_plugin
from lmcache_kit.plugin_templates.writing import kind_text
from lmcache_kit.plugins import _HOOK_OF_KIND, PluginRegistry
from lmcache_kit.scenario import parse_scenario

BUILT_IN = PluginRegistry(allow=[])


def written(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", PLUGIN_KINDS)
def test_a_kind_is_a_whole_distribution(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "here" / "mine"
    assert main(["plugins", "new", "odd-thing", "--kind", kind, "--directory", str(target), "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    files = written(target)
    assert sorted(files) == sorted(told["files"])
    assert told["plugin"] == "odd_thing"
    assert len(told["next"]) == 3
    assert {
        ".gitignore",
        ".github/workflows/test.yaml",
        "README.md",
        "pyproject.toml",
        "scenario.yaml",
        "tests/test_conformance.py",
        "odd_thing/__init__.py",
        "odd_thing/plugin.py",
        "odd_thing/py.typed",
    } <= set(files)
    settings = tomllib.loads(files["pyproject.toml"])
    assert settings["project"]["name"] == "odd-thing"
    assert settings["project"]["entry-points"]["lmcache_kit"] == {"odd_thing": "odd_thing.plugin"}
    for name, text in files.items():
        assert "$" not in text.replace("${{ matrix.python }}", ""), f"{name} has a placeholder left"
        assert not re.search(r"TODO|FIXME|NotImplemented|\bpass$", text, re.MULTILINE), f"{name} is a stub"
        assert max(map(len, text.splitlines()), default=0) <= 132, name
        if name.endswith(".py"):
            ast.parse(text)
    hooks = {node.name for node in ast.parse(files["odd_thing/plugin.py"]).body if isinstance(node, ast.FunctionDef)}
    assert _HOOK_OF_KIND[kind] in hooks
    scenario = parse_scenario(files["scenario.yaml"])
    assert scenario.name == "odd-thing"
    assert scenario.expect
    assert "odd_thing" in files["scenario.yaml"]
    assert yaml.safe_load(files[".github/workflows/test.yaml"])["jobs"]


@pytest.mark.parametrize("kind", PLUGIN_KINDS)
def test_the_readme_names_every_module(kind: str, tmp_path: Path) -> None:
    write_plugin(plugin_names("odd-thing", kind, BUILT_IN), kind, tmp_path)
    readme = (tmp_path / "README.md").read_text()
    for path in (tmp_path / "odd_thing").glob("*.py"):
        assert path.name == "__init__.py" or f"`odd_thing/{path.name}`" in readme
    assert kind_text(kind).summary in (tmp_path / "odd_thing" / "plugin.py").read_text()


def test_nothing_heavy_is_imported_by_a_plugin_module(tmp_path: Path) -> None:
    allowed = {"__future__", "collections", "lmcache_kit", "msgspec", "typing"}
    for kind in PLUGIN_KINDS:
        write_plugin(plugin_names("odd-thing", kind, BUILT_IN), kind, tmp_path / kind)
        tree = ast.parse((tmp_path / kind / "odd_thing" / "plugin.py").read_text())
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                assert {name.split(".")[0] for name in names} <= allowed


def test_three_commands_come_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plugins", "new", "my-codec", "--kind", "compression"]) == 0
    shown = capsys.readouterr().out
    commands = [line for line in shown.splitlines() if re.match(r"  (pip|pytest|lmcache-kit) ", line)]
    assert [command.split("  ")[1] for command in commands] == [
        "pip install -e './my-codec[test]'",
        "pytest my-codec",
        "lmcache-kit run my-codec/scenario.yaml",
    ]


def test_the_commands_quote_a_folder_with_spaces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "with a space"
    assert main(["plugins", "new", "odd", "--kind", "eviction", "--directory", str(target), "--format", "json"]) == 0
    install, test, run = json.loads(capsys.readouterr().out)["next"]
    assert install == f"pip install -e '{target}[test]'"
    assert test == f"pytest '{target}'"
    assert run == f"lmcache-kit run '{target}/scenario.yaml'"


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["plugins", "new", "odd", "--kind", "storage", "--directory", str(tmp_path)]) == 1
    assert "not an empty folder" in capsys.readouterr().err
    assert written(tmp_path) == {"notes.txt": "mine"}


def test_a_file_in_the_way_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "file"
    place.write_text("mine")
    for target in (place, place / "below"):
        assert main(["plugins", "new", "odd", "--kind", "storage", "--directory", str(target)]) != 0
        assert "error: " in capsys.readouterr().err
    assert place.read_text() == "mine"


def test_an_empty_folder_may_be_there(tmp_path: Path) -> None:
    assert main(["plugins", "new", "odd", "--kind", "storage", "--directory", str(tmp_path)]) == 0
    assert (tmp_path / "pyproject.toml").is_file()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("My Codec", "'my-codec'"),
        ("MyCodec", "'my-codec'"),
        ("2fast", "'fast'"),
        ("a--b", "'a-b'"),
        ("a_-b", "'a-b'"),
        ("-x", "'x'"),
        ("x-", "'x'"),
        ("../up", "'up'"),
        ("größe", "'gr-e'"),
        ("", "lower-case"),
        ("ß", "lower-case"),
        ("a" * 41, "'" + "a" * 40 + "'"),
    ],
)
def test_a_name_that_cannot_be_a_package_is_refused_with_one_that_can(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plugin_names(name, "storage", BUILT_IN)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["class", "match", "lambda"])
def test_a_word_of_python_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="word of Python"):
        plugin_names(name, "storage", BUILT_IN)


@pytest.mark.parametrize("name", ["json", "numpy", "lmcache-kit", "test", "hypothesis"])
def test_a_package_that_is_there_is_not_hidden(name: str) -> None:
    with pytest.raises(ConflictError, match="can be imported already"):
        plugin_names(name, "storage", BUILT_IN)


def test_a_registered_name_is_refused_for_its_kind_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "new", "zstd", "--kind", "compression"]) == 1
    assert "compression 'zstd' is already registered by lmcache_kit.builtin" in capsys.readouterr().err
    assert plugin_names("fifo", "storage", BUILT_IN).package == "fifo"


def test_a_plugin_is_found_by_the_name_of_its_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "show", "kv-cache-tester"]) == 0
    assert "kv_cache_tester" in capsys.readouterr().out
    assert main(["plugins", "show", "kv-cache-testr"]) == 2


def test_an_unknown_kind_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "new", "odd", "--kind", "storeage", "--directory", str(tmp_path / "x")]) == 2
    assert "compression" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


WORDS = st.from_regex(r"[a-z][a-z0-9]{0,5}([-_][a-z0-9]{1,5}){0,3}", fullmatch=True)


@given(name=WORDS)
def test_the_spellings_of_a_name_fit_what_they_are_for(name: str) -> None:
    try:
        names = plugin_names(name, "storage", BUILT_IN)
    except (ConfigError, ConflictError):
        return
    assert names.package.isidentifier()
    assert not keyword.iskeyword(names.package)
    assert names.class_name.isidentifier()
    assert names.class_name[0].isupper()
    assert re.fullmatch(r"[a-z0-9_]+", names.package), "what a record's name may be"
    assert re.fullmatch(r"[a-z][a-z0-9+.-]*", names.scheme), "what the scheme of a peer URL may be"
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", names.distribution), "what a distribution's normal name is"
    assert names.distribution.replace("-", "_") == names.package


def outcome(name: str) -> PluginNames | LMCacheKitError:
    try:
        return plugin_names(name, "storage", BUILT_IN)
    except (ConfigError, ConflictError) as error:
        return error


@given(name=st.text(max_size=60))
def test_any_text_is_a_name_or_a_readable_refusal(name: str) -> None:
    found = outcome(name)
    if isinstance(found, PluginNames):
        assert found.distribution == name.replace("_", "-")
    else:
        assert found.hint
        assert len(found.detail.splitlines()) == 1


@given(name=st.text(min_size=1, max_size=60))
def test_a_suggestion_is_a_name_itself(name: str) -> None:
    found = outcome(name)
    suggested = re.search(r"did you mean '([^']*)'", getattr(found, "hint", None) or "")
    if suggested:
        again = outcome(suggested[1])
        taken = isinstance(again, ConflictError) or "word of Python" in getattr(again, "message", "")
        assert isinstance(again, PluginNames) or taken
