from __future__ import annotations

from pathlib import Path

import pytest

from lmcache_kit.errors import ConfigError
from lmcache_kit.scenario import catalog, find_scenario, load_scenario, shipped_scenarios


def test_the_quickstart_ships() -> None:
    assert {"quickstart", "synthetic", "tiers", "compress_lossy", "compress_cachegen"} <= set(shipped_scenarios())
    assert find_scenario("quickstart") == shipped_scenarios()["quickstart"]


@pytest.mark.parametrize("name", sorted(shipped_scenarios()))
def test_a_shipped_scenario_is_called_like_its_file_and_says_what_it_is(name: str) -> None:
    scenario = load_scenario(shipped_scenarios()[name])
    assert scenario.name == name
    assert scenario.summary


def test_a_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").write_text("name: mine")
    assert find_scenario("quickstart") == Path("quickstart")


def test_a_folder_does_not_hide_the_shipped_scenario_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiers").mkdir()
    assert find_scenario("tiers") == shipped_scenarios()["tiers"]


def test_scenarios_inside_an_installed_package_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_PACKAGE", tmp_path)
    (tmp_path / "_scenarios").mkdir()
    (tmp_path / "_scenarios" / "only.yaml").write_text("name: only")
    assert list(shipped_scenarios()) == ["only"]


def test_an_unknown_name_answers_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        find_scenario("quikstart.yaml")
    assert "did you mean 'quickstart'?" in (caught.value.hint or "")
    with pytest.raises(ConfigError, match="is a folder"):
        find_scenario(str(tmp_path))
