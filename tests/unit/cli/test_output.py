"""Tables and facts on terminals and in pipes."""

from __future__ import annotations

import os
import sys

import pytest

from lmcache_kit.cli import main
from lmcache_kit.cli.output import print_facts, print_table
from lmcache_kit.text_table import text_table, width_of


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch):
    """Make stdout a terminal of so many columns."""

    def make(columns: int) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setattr("shutil.get_terminal_size", lambda *_: os.terminal_size((columns, 24)))

    return make


def test_a_table_has_no_control_characters_and_no_trailing_blanks() -> None:
    text = text_table(["name", "size"], [["[red]x[/red]", "1"], ["y", "2000"]], numeric={"size"})
    lines = text.splitlines()
    assert "\x1b" not in text
    assert "  [red]x[/red]      1" in lines, "no markup, and numbers are flush right"
    assert all(line == line.rstrip() for line in lines)


def test_a_pipe_gets_long_cells_whole(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["a", "b"], [["x", "word " * 200 + "end"]])
    assert "word " * 200 + "end" in capsys.readouterr().out


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_a_narrow_terminal_gets_cells_that_wrap(terminal, capsys, columns: int) -> None:
    terminal(columns)
    print_table(["a", "b"], [["x", "word " * 50]])
    shown = capsys.readouterr().out
    assert width_of(shown) <= columns
    assert shown.count("word") == 50


def test_a_spare_column_goes_first_where_there_is_no_room(terminal, capsys) -> None:
    terminal(80)
    rows = [["zstd", "lossless; " * 6, "lmcache-kit-somewhere"]]
    print_table(["name", "summary", "from"], rows, spare="from")
    shown = capsys.readouterr()
    assert "somewhere" not in shown.out
    assert "too narrow for the column 'from'" in shown.err
    terminal(200)
    print_table(["name", "summary", "from"], rows, spare="from")
    shown = capsys.readouterr()
    assert "somewhere" in shown.out
    assert shown.err == ""


@pytest.mark.parametrize("columns", [80, 100])
def test_the_list_of_plugins_fits_and_breaks_no_name(terminal, capsys, columns: int) -> None:
    terminal(columns)
    assert main(["plugins", "list"]) == 0
    shown = capsys.readouterr().out
    assert width_of(shown) <= columns
    assert {"storage", "memory", "write_back", "completions"} <= set(shown.split())
    assert len(shown.splitlines()) < 85


def test_facts_have_units_and_no_heading(capsys) -> None:
    print_facts(
        {
            "event_id": "e",
            "num_tokens": 12345,
            "bytes_before": 924310,
            "ratio": 1.3017387312022397,
            "seconds": 0.04535,
            "copy": True,
            "error": None,
            "devices": ["cpu", "gpu"],
            "job_seconds": {"p50": 0.5, "max": 2.0},
        }
    )
    assert [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()] == [
        ["event_id", "e"],
        ["num_tokens", "12,345"],
        ["bytes_before", "903 KiB (924,310 bytes)"],
        ["ratio", "1.302"],
        ["seconds", "45.4 ms"],
        ["copy", "yes"],
        ["devices", "cpu, gpu"],
        ["job_seconds", "p50 500 ms, max 2 s"],
    ]


def test_a_trace_that_cannot_be_read_is_a_wrong_argument(tmp_path, capsys) -> None:
    (tmp_path / "bad.jsonl").write_text('{"timestamp": 0}\n')
    for name in ("missing.jsonl", "bad.jsonl"):
        assert main(["trace", "info", str(tmp_path / name)]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert f"error: {tmp_path / name}" in shown.err


def test_an_empty_trace_shows_only_what_it_has(tmp_path, capsys) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    assert main(["trace", "info", str(tmp_path / "empty.jsonl")]) == 0
    assert "None" not in capsys.readouterr().out
