"""docs/reference/configuration.md is what the code says."""

from __future__ import annotations

from pathlib import Path

import yaml

from lmcache_kit.instance.config.keys import ALIASES, ENGINE_KEYS, OLD_KEYS
from lmcache_kit.instance.config.loading import instance_config
from lmcache_kit.instance.config.reference import reference

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "configuration.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "run: python -m lmcache_kit.instance.config.reference > docs/reference/configuration.md"
    )


def test_the_page_names_every_key() -> None:
    text = reference()
    for name in (*ENGINE_KEYS, *ALIASES, *OLD_KEYS):
        assert f"`{name}`" in text


def test_the_example_on_the_page_loads() -> None:
    block = reference().split("```yaml\n")[1].split("```")[0]
    config = instance_config(yaml.safe_load(block))
    assert [(tier.storage.kind, tier.method) for tier in config.tiers] == [("memory", None), ("disk", "zstd")]
    assert config.warnings == ()
