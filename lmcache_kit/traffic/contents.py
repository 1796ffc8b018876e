"""What made-up requests hold: lengths, and the blocks that say what their prompts share.

A prompt is a sequence of pieces (a system prompt, documents, a question), each known by a number. The chained id of a
block is made of the pieces up to the one in which the block ends, and of the block's place: two prompts have a block in
common exactly when they agree in all pieces up to its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from lmcache_kit.contracts.trace import TraceRecord
from lmcache_kit.traffic.draws import Draws, Zipf, mix
from lmcache_kit.traffic.lengths import draw_length
from lmcache_kit.traffic.specs import Independent, Rag, SharedPrefix

__all__ = ["BlockChain", "single_requests"]

_MASK = 2**64 - 1
_STEP = 0xD6E8FEB86659FD93


class BlockChain:
    """The blocks of a prompt that grows piece by piece.

    Args:
        block_size: tokens of a block.
        salt: sets the ids apart from those of other sources.
    """

    __slots__ = ("_block_size", "_name", "ids", "tokens")

    def __init__(self, block_size: int, salt: int) -> None:
        self._block_size = block_size
        self._name = salt
        self.tokens = 0
        self.ids: list[int] = []

    def add(self, piece: int, tokens: int) -> None:
        """Append a piece: its number, at least 0, and its length."""
        self._name = mix(self._name, piece)
        self.grow(tokens)

    def grow(self, tokens: int) -> None:
        """Make the last piece longer."""
        self.tokens += tokens
        name, done = self._name, len(self.ids)
        self.ids += [(name + place * _STEP) & _MASK for place in range(done, self.tokens // self._block_size)]

    def copy(self) -> BlockChain:
        """A chain that grows by itself."""
        twin = BlockChain(self._block_size, self._name)
        twin.tokens, twin.ids = self.tokens, self.ids.copy()
        return twin

    def record(self, arrival: float, output_tokens: int, session: str | None = None) -> TraceRecord:
        """The request whose prompt is what the chain holds now."""
        tail = self.tokens % self._block_size
        return TraceRecord(
            arrival=arrival,
            input_tokens=self.tokens,
            output_tokens=output_tokens,
            block_ids=tuple(self.ids),
            tail_tokens=tail,
            tail_id=(self._name + len(self.ids) * _STEP) & _MASK if tail else None,
            session=session,
        )


def single_requests(
    spec: Independent | SharedPrefix | Rag, arrivals: Iterator[float], draws: Draws, salt: int
) -> Iterator[TraceRecord]:
    """Requests that nothing follows, without end, one per arrival."""
    if isinstance(spec, Independent):
        return _independent(spec, arrivals, draws, salt)
    return _shared(spec, arrivals, draws, salt) if isinstance(spec, SharedPrefix) else _rag(spec, arrivals, draws, salt)


def _independent(spec: Independent, arrivals: Iterator[float], draws: Draws, salt: int) -> Iterator[TraceRecord]:
    for number, arrival in enumerate(arrivals):
        chain = BlockChain(spec.block_size, salt)
        chain.add(number, draw_length(spec.prompt_tokens, draws))
        yield chain.record(arrival, draw_length(spec.output_tokens, draws))


def _shared(spec: SharedPrefix, arrivals: Iterator[float], draws: Draws, salt: int) -> Iterator[TraceRecord]:
    zipf = Zipf(spec.groups, spec.zipf)
    prefixes = []
    for group in range(spec.groups):
        chain = BlockChain(spec.block_size, salt)
        chain.add(group, draw_length(spec.prefix_tokens, draws))
        prefixes.append(chain)
    # Numbers of groups and of prompts must differ: a prompt's own piece is never another one's.
    for number, arrival in zip(count(spec.groups), arrivals, strict=False):
        chain = prefixes[zipf.draw(draws)].copy()
        chain.add(number, draw_length(spec.suffix_tokens, draws))
        yield chain.record(arrival, draw_length(spec.output_tokens, draws))


def _rag(spec: Rag, arrivals: Iterator[float], draws: Draws, salt: int) -> Iterator[TraceRecord]:
    zipf = Zipf(spec.documents, spec.zipf)
    lengths = [draw_length(spec.document_tokens, draws) for _ in range(spec.documents)]
    system = BlockChain(spec.block_size, salt)
    if spec.system_tokens:
        system.add(spec.documents, spec.system_tokens)
    for number, arrival in zip(count(spec.documents + 1), arrivals, strict=False):
        chain = system.copy()
        chosen = zipf.draw_different(draw_length(spec.per_request, draws), draws)
        for document in sorted(chosen) if spec.order == "sorted" else chosen:
            chain.add(document, lengths[document])
        chain.add(number, draw_length(spec.question_tokens, draws))
        yield chain.record(arrival, draw_length(spec.output_tokens, draws))
