"""Tokens to text while they arrive: whole characters only, and stop strings found across token boundaries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["IncrementalText", "StopMatcher"]

_REPLACEMENT = "�"


class IncrementalText:
    """Text of a growing list of tokens.

    A token may be a part of a character, and its text may depend on the tokens before it. So each step decodes a
    window that begins at the last place where the text was whole, and gives out what the window gained; a window that
    ends in an unfinished character waits. The pieces joined are the text of all tokens, for every tokenizer whose
    decoding of a token depends on nearby tokens only.

    Args:
        detokenize: text of tokens.
        context: tokens before the first one, for tokenizers that treat a text's beginning differently.
    """

    _MOST_WAITING = 8  # no character has more tokens; past this the text really holds broken characters

    def __init__(self, detokenize: Callable[[Sequence[int]], str], context: Sequence[int] = ()) -> None:
        self._detokenize = detokenize
        self._window = list(context)
        self._given = len(self._window)

    def push(self, token: int) -> str:
        """The text gained by ``token``; empty while a character is unfinished."""
        self._window.append(token)
        text = self._detokenize(self._window)
        waiting = len(self._window) - self._given
        if text.endswith(_REPLACEMENT) and waiting < self._MOST_WAITING:
            return ""
        return self._give(text)

    def flush(self) -> str:
        """What is left at the end, an unfinished character as the replacement character."""
        return self._give(self._detokenize(self._window)) if self._given < len(self._window) else ""

    def _give(self, text: str) -> str:
        gained = text[len(self._detokenize(self._window[: self._given])) :]
        del self._window[: self._given]
        self._given = len(self._window)
        return gained


class StopMatcher:
    """Lets text through until one of the stop strings appears, holding back what may become one.

    Args:
        stops: strings that end the text; the first to be complete wins, at one place the first listed.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """The text that may be shown; after a match everything is swallowed, the stop string included."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        self._held += text
        places = [(self._held.find(stop), stop) for stop in self._stops]
        found = [(at + len(stop), at, stop) for at, stop in places if at >= 0]
        if found:
            _, at, self.matched = min(found, key=lambda match: match[0])
            shown, self._held = self._held[:at], ""
            return shown
        keep = max(self._overlap(stop) for stop in self._stops)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return shown

    def flush(self) -> str:
        """The text held back, when the end came without a match."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins ``stop``."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)
