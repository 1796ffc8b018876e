from __future__ import annotations

from pathlib import Path

import pytest

from lmcache_kit.errors import ConfigError
from lmcache_kit.live import OutputFolder


def test_an_earlier_run_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "out" / "x")
    folder.prepare()
    folder.scenario.write_text("name: x")
    (folder.data / "blob").write_text("old")
    (folder.path / "mine.txt").write_text("keep me")
    folder.prepare()
    assert not (folder.data / "blob").exists()
    assert not folder.scenario.exists()
    assert (folder.path / "mine.txt").read_text() == "keep me"


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "data").mkdir()
    with pytest.raises(ConfigError, match="something else"):
        OutputFolder(tmp_path).prepare()
    assert (tmp_path / "thesis.tex").exists()
    assert (tmp_path / "data").is_dir()


def test_a_project_whose_files_are_called_like_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scenario.yaml").write_text("name: mine")
    for name in ("data", "config", "logs"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "prompts.txt").write_text("mine")
    with pytest.raises(ConfigError, match="something else"):
        OutputFolder(tmp_path).prepare()
    assert (tmp_path / "scenario.yaml").read_text() == "name: mine"
    assert (tmp_path / "data" / "prompts.txt").read_text() == "mine"


def test_a_run_that_was_killed_at_once_leaves_a_folder_for_the_next(tmp_path: Path) -> None:
    OutputFolder(tmp_path / "out").prepare()
    OutputFolder(tmp_path / "out").prepare()


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be the output directory") as caught:
        OutputFolder(tmp_path / "file").prepare()
    assert "--output-dir" in (caught.value.hint or "")


def test_a_link_is_removed_and_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    folder = OutputFolder(tmp_path / "out")
    folder.prepare()
    folder.scenario.write_text("")
    folder.data.rmdir()
    folder.data.symlink_to(precious)
    folder.prepare()
    assert (precious / "file").exists()
