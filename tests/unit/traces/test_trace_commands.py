"""`lmcache-kit trace info` and `trace convert`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmcache_kit.cli import main

DATA = Path(__file__).parents[3] / "scenarios" / "data" / "traces"


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main(["trace", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def test_info_says_what_a_trace_cannot_tell(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "info", DATA / "azure.csv", "--reader", "azure")
    assert code == 0
    assert "it says nothing of prefixes" in out
    assert "hit rate  " not in out
    assert "None" not in out


def test_info_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "info", DATA / "lookups", "--reader", "lmcache_lookup", "--format", "json")
    facts = json.loads(out)
    assert (code, facts["requests"], facts["block_size"]) == (0, 44, 256)
    assert facts["first_admission"]["retries"] == 4
    assert facts["lmcache_token_hit_rate"] == 46_080 / 74_518


def test_options_of_the_reader_are_given_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    agents = (DATA / "agents", "--reader", "kv_cache_tester", "--format", "json")
    spans = [
        json.loads(run(capsys, "info", *agents, *more)[1])["arrival_span_seconds"]
        for more in ((), ("--set", "start_gap_seconds=600"))
    ]
    assert spans[1] > spans[0] + 600
    code, _, err = run(capsys, "info", *agents, "--set", "gap=600")
    assert code == 2
    assert "start_gap_seconds" in err


def test_convert_and_read_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    code, out, _ = run(capsys, "convert", DATA / "chats.jsonl", output, "--reader", "qwen_bailian", "--to", "mooncake")
    assert code == 0
    assert "40" in out
    both = [
        json.loads(run(capsys, "info", *words, "--format", "json")[1])
        for words in ((DATA / "chats.jsonl", "--reader", "qwen_bailian"), (output,))
    ]
    for facts in both:
        del facts["file"], facts["reader"]
        facts["arrival_span_seconds"] = round(facts["arrival_span_seconds"], 6)
    assert both[0] == both[1]


def test_convert_spreads_bursts_and_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    texts = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        output = tmp_path / name
        words = ("--spread", "--seed", seed, "--longest-gap", 2, "--format", "json")
        code, out, _ = run(capsys, "convert", DATA / "conversations.jsonl", output, *words)
        facts = json.loads(out)["spread"]
        assert (code, facts["seed"], facts["largest_burst"]) == (0, seed, 5)
        assert 0 < facts["longest_shift_seconds"] <= 2
        texts.append(output.read_bytes())
    assert texts[0] == texts[1] != texts[2]


def test_nothing_is_overwritten(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "mine"
    output.write_text("mine")
    code, out, err = run(capsys, "convert", DATA / "conversations.jsonl", output)
    assert (code, out) == (2, "")
    assert "cannot be written" in err
    assert output.read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("info", "gone.jsonl"), "gone.jsonl cannot be read"),
        (("info", DATA / "azure.csv"), "azure.csv:1"),
        (("info", DATA / "conversations.jsonl", "--reader", "moncake"), "did you mean 'mooncake'"),
        (("info", DATA / "conversations.jsonl", "--reader", "azure"), "no column 'TIMESTAMP'"),
    ],
)
def test_what_cannot_be_read_is_named(
    capsys: pytest.CaptureFixture[str], words: tuple[object, ...], message: str
) -> None:
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert message in err
