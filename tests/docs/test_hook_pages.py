"""docs/reference/hooks is what its generator makes of the docstrings, and says all that an author needs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from lmcache_kit import testing
from lmcache_kit.contracts.records import PLUGIN_KINDS

FOLDER = Path(__file__).parents[2] / "docs" / "reference" / "hooks"


@pytest.fixture(scope="module")
def generator() -> Any:
    spec = importlib.util.spec_from_file_location("hook_pages", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_current(generator: Any) -> None:
    made = generator.pages()
    assert {path.name for path in FOLDER.glob("*.md")} == set(made)
    for name, text in made.items():
        assert (FOLDER / name).read_text() == text, f"{name} is old: python docs/reference/hooks/generate.py"


def test_every_kind_has_a_page_that_the_index_links(generator: Any) -> None:
    index = (FOLDER / "README.md").read_text()
    assert set(generator.WHERE) == set(PLUGIN_KINDS)
    for kind in PLUGIN_KINDS:
        assert f"]({kind}.md)" in index
    for link in re.findall(r"\]\(([^)#]+)\)", index):
        assert (FOLDER / link).exists(), link


def test_every_suite_is_named_on_the_page_of_its_kind(generator: Any) -> None:
    assert {*generator.SUITES.values(), "strategies"} == set(testing.__all__)
    for kind, suite in generator.SUITES.items():
        assert f"`lmcache_kit.testing.{suite}`" in (FOLDER / f"{kind}.md").read_text()


@pytest.mark.parametrize("kind", PLUGIN_KINDS)
def test_a_page_says_everything(kind: str, generator: Any) -> None:
    text = (FOLDER / f"{kind}.md").read_text()
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert [heading.split(":")[0] for heading in headings] == [
        "The record",
        "Capabilities",
        "The contract",
        "Example",
        "Tests and template",
    ]
    assert f"plugins new my-{kind} --kind {kind}" in text
    assert "``" not in re.sub(r"```", "", text), "reStructuredText is left"
    assert not re.search(r":\w+:`", text)
    for name in re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE):
        assert name in PLUGIN_KINDS[kind].__dataclass_fields__
