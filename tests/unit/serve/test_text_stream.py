"""Whole characters only, and stop strings across token boundaries."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lmcache_kit.instance.http.text_stream import IncrementalText, StopMatcher


def decode(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode(errors="replace")


def test_a_character_is_shown_when_it_is_whole() -> None:
    text = IncrementalText(decode)
    assert [text.push(byte) for byte in "aé漢🙂".encode()] == ["a", "", "é", "", "", "漢", "", "", "", "🙂"]
    assert text.flush() == ""


def test_a_character_that_never_gets_whole_is_shown_at_the_end() -> None:
    text = IncrementalText(decode)
    assert text.push(0xE4) + text.push(0xB8) == ""
    assert text.flush() == "�"
    assert text.flush() == ""


def test_broken_bytes_do_not_hold_back_the_text_for_ever() -> None:
    text = IncrementalText(decode)
    shown = "".join(text.push(0xFF) for _ in range(50))
    assert len(shown) >= 40
    assert shown + text.flush() == "�" * 50


def test_the_first_token_is_decoded_as_it_stands_after_the_prompt() -> None:
    # Like sentencepiece: words begin with a space, which is dropped at the beginning of a text.
    words = {1: " a", 2: " b", 3: " c"}
    text = IncrementalText(lambda tokens: "".join(words[token] for token in tokens)[1:], context=[1])
    assert [text.push(2), text.push(3)] == [" b", " c"]


def matched(pieces: Sequence[str], stops: Sequence[str]) -> tuple[list[str], str | None]:
    matcher = StopMatcher(stops)
    shown = [matcher.push(piece) for piece in pieces]
    return [*shown, "" if matcher.matched else matcher.flush()], matcher.matched


@pytest.mark.parametrize(
    ("pieces", "stops", "shown", "reason"),
    [
        (["ab", "cd"], [], ["ab", "cd", ""], None),
        (["ab", "cd"], ["bc"], ["a", "", ""], "bc"),
        (["ab", "ce", "f"], ["bcd"], ["a", "bce", "f", ""], None),
        (["ab"], ["bc"], ["a", "b"], None),
        (["aab", "ab", "c"], ["abc"], ["a", "ab", "", ""], "abc"),
        (["xyz"], ["yz", "z"], ["x", ""], "yz"),
        (["xyz"], ["xyz", "y"], ["x", ""], "y"),  # the first to be complete
        (["xyz"], ["yz", "xyz"], ["x", ""], "yz"),  # both complete at once: the first listed
        (["END", "more"], ["END"], ["", "", ""], "END"),
        (["aaaa"], ["aaa"], ["", ""], "aaa"),
    ],
)
def test_stop_strings(pieces: list[str], stops: list[str], shown: list[str], reason: str | None) -> None:
    assert matched(pieces, stops) == (shown, reason)
