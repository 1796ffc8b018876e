"""Streamed text against what the whole text says."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from lmcache_kit.instance.http.text_stream import IncrementalText, StopMatcher


def decode(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode(errors="replace")


@given(st.text(max_size=60), st.binary(max_size=3))
def test_pieces_joined_are_the_text(text: str, tail: bytes) -> None:
    tokens = text.encode(errors="ignore") + tail
    stream = IncrementalText(decode)
    pieces = [stream.push(token) for token in tokens]
    assert "".join(pieces) + stream.flush() == decode(tokens)
    whole = text.encode(errors="ignore").decode()
    if not tail:
        assert "".join(pieces) == whole


@given(st.lists(st.text("abc", max_size=4), max_size=12), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_stop_strings_cut_where_the_whole_text_says(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown, at_match = "", None
    for count, piece in enumerate(pieces, 1):
        shown += matcher.push(piece)
        if matcher.matched is not None and at_match is None:
            at_match = count
    text = "".join(pieces)
    # The oracle reads the text character by character, and asks after each whether a stop string ends here.
    ends = [(end, stop) for end in range(len(text) + 1) for stop in stops if text[:end].endswith(stop)]
    if not ends:
        assert matcher.matched is None
        assert shown + matcher.flush() == text
        return
    end = ends[0][0]
    # Of two that end here, the one that began first cannot be cut shorter by the other: any of them may be named.
    assert matcher.matched in [stop for at, stop in ends if at == end]
    assert shown == text[: end - len(matcher.matched)]
    assert at_match is not None
    assert len("".join(pieces[: at_match - 1])) < end <= len("".join(pieces[:at_match]))
