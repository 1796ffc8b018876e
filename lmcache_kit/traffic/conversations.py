"""Conversations of several turns, each turn's prompt made of all that was said before."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from lmcache_kit.contracts.trace import TraceRecord
from lmcache_kit.traffic.contents import BlockChain
from lmcache_kit.traffic.draws import Draws
from lmcache_kit.traffic.lengths import draw_length
from lmcache_kit.traffic.specs import MultiTurn

__all__ = ["Conversations"]

_NANOSECONDS = 1_000_000_000


class _Conversation:
    """One under way: its blocks so far, and the turns to come, last first."""

    __slots__ = ("chain", "turns")

    def __init__(self, chain: BlockChain, turns: list[tuple[int, int, float]]) -> None:
        self.chain = chain
        self.turns = turns


class Conversations:
    """Conversations that begin at given times; what is said in one is drawn when it begins.

    So the order in which answers come changes no conversation.

    Args:
        spec: how they are.
        arrivals: when each begins, in seconds.
        draws: for lengths and times.
        salt: sets the ids apart from those of other sources.
        requests: how many turns there are in all; the last conversation is cut short.
        cap: most output tokens of a turn; None for no more than drawn.
    """

    def __init__(
        self,
        spec: MultiTurn,
        arrivals: Iterator[float],
        draws: Draws,
        salt: int,
        *,
        requests: int,
        cap: int | None = None,
    ) -> None:
        self._spec = spec
        self._arrivals = arrivals
        self._draws = draws
        self._left = requests
        self._cap = cap
        self._open: dict[str, _Conversation] = {}
        self._system = BlockChain(spec.block_size, salt)
        if spec.system_tokens:
            self._system.add(0, spec.system_tokens)

    def first_turns(self) -> Iterator[TraceRecord]:
        """The first turn of each conversation, in the order of their arrival."""
        number = 0
        while self._left > 0:
            number += 1
            turns = self._turns()
            self._left -= len(turns)
            user, output, _ = turns.pop()
            chain = self._system.copy()
            chain.add(number, user)
            session = f"c{number}"
            yield self._said(session, _Conversation(chain, turns), output, next(self._arrivals))

    def follow(self, record: TraceRecord) -> tuple[float, TraceRecord] | None:
        """What follows an answer to ``record``: seconds of thinking and the next turn; None after the last one."""
        session = record.session
        talk = None if session is None else self._open.pop(session, None)
        if session is None or talk is None:
            return None
        user, output, think = talk.turns.pop()
        talk.chain.grow(record.output_tokens + user)
        return think, self._said(session, talk, output, record.arrival)

    def _said(self, session: str, talk: _Conversation, output: int, arrival: float) -> TraceRecord:
        if talk.turns:
            self._open[session] = talk
        return talk.chain.record(arrival, output, session)

    def _turns(self) -> list[tuple[int, int, float]]:
        """(user tokens, output tokens, seconds of thinking before it) of each turn, last first."""
        return list(islice(self._drawn(), self._left))[::-1]

    def _drawn(self) -> Iterator[tuple[int, int, float]]:
        spec, draws = self._spec, self._draws
        longest = spec.max_prompt_tokens
        said = spec.system_tokens
        for turn in range(draw_length(spec.turns, draws)):
            user, output = draw_length(spec.user_tokens, draws), draw_length(spec.output_tokens, draws)
            if self._cap is not None:
                output = min(output, self._cap)
            think = round(draws.exponential(spec.think_seconds) * _NANOSECONDS) / _NANOSECONDS
            said += user
            # The first turn is played however long it is: a conversation without turns is none.
            if longest is not None and said > longest and turn:
                return
            said += output
            yield user, output, think
