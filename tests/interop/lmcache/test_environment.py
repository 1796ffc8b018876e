"""What the environment of real LMCache is."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.exercises("the environment of real LMCache")
def test_it_is_what_its_recipe_says_and_has_nothing_of_ours(lmcache_env: Any) -> None:
    versions = lmcache_env.versions()
    assert versions["lmcache"] == "0.5.6"
    assert versions["torch"].startswith("2.13.0")
    assert not [name for name in versions if name.startswith("lmcache-kit")]
    assert not (lmcache_env.recipe.left_out.keys() - {"torch"}) & versions.keys()
