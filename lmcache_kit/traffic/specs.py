"""How made-up traffic is described in a scenario; light, because every `--help` and schema reads it."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from lmcache_kit.contracts.records import Options

__all__ = [
    "Arrivals",
    "Bursts",
    "Closed",
    "Contents",
    "Gamma",
    "Independent",
    "Length",
    "Lognormal",
    "MultiTurn",
    "Poisson",
    "Rag",
    "SharedPrefix",
    "Uniform",
]

Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
Rate = Annotated[float, Meta(gt=0)]
Exponent = Annotated[float, Meta(ge=0, le=10)]


class Uniform(Options, frozen=True, tag="uniform", tag_field="kind"):
    """A whole number from ``at_least`` to ``at_most``, each as likely as the other."""

    at_most: Positive
    at_least: Positive = 1

    def __post_init__(self) -> None:
        _check_limits(self.at_least, self.at_most)


class Lognormal(Options, frozen=True, tag="lognormal", tag_field="kind"):
    """Many small and few large ones: ``cv`` is the deviation over the mean, before it is cut to the limits.

    Args:
        mean: of the numbers.
        cv: deviation over mean.
        at_least: smaller ones are raised to it.
        at_most: larger ones are lowered to it.
    """

    mean: Annotated[float, Meta(ge=1, le=1e9)]
    cv: Annotated[float, Meta(gt=0, le=100)] = 1.0
    at_least: Positive = 1
    at_most: Positive | None = None

    def __post_init__(self) -> None:
        _check_limits(self.at_least, self.at_most)


Length = Positive | Uniform | Lognormal
"""How many tokens (or turns, or documents): a number, or how it is drawn."""


class Poisson(Options, frozen=True, tag="poisson", tag_field="kind"):
    """``rate`` arrivals a second, each independent of the others."""

    rate: Rate


class Gamma(Options, frozen=True, tag="gamma", tag_field="kind"):
    """``rate`` arrivals a second whose gaps have a deviation of ``cv`` times their mean: 0 is a steady beat, 1 is
    poisson, more comes in clusters."""

    rate: Rate
    cv: Annotated[float, Meta(ge=0, le=100)] = 2.0


class Bursts(Options, frozen=True, tag="bursts", tag_field="kind"):
    """``size`` arrivals every ``every`` seconds, evenly over the first ``within`` of them: 0 is all at once."""

    size: Positive
    every: Annotated[float, Meta(gt=0)]
    within: Annotated[float, Meta(ge=0)] = 0.0

    def __post_init__(self) -> None:
        if self.within > self.every:
            raise ValueError(f"a burst within {self.within} s does not end before the next one, {self.every} s later")


class Closed(Options, frozen=True, tag="closed", tag_field="kind"):
    """``concurrency`` users, each of whom sends the next request when the last one has ended."""

    concurrency: Positive


Arrivals = Poisson | Gamma | Bursts | Closed


class _Made(Options, frozen=True, kw_only=True):
    """What all made-up contents have.

    Args:
        output_tokens: tokens to be written.
        block_size: tokens of the blocks by which prompts are known: what prompts share, they share in whole blocks.
    """

    output_tokens: Length = 64
    block_size: Positive = 64


class Independent(_Made, frozen=True, tag="independent", tag_field="kind"):
    """Prompts that share nothing."""

    prompt_tokens: Length = 512


class SharedPrefix(_Made, frozen=True, tag="shared_prefix", tag_field="kind"):
    """Groups of prompts that begin alike.

    Args:
        groups: number of prefixes.
        prefix_tokens: length of a group's prefix, drawn once per group.
        suffix_tokens: length of what only this prompt has.
        zipf: 0 makes all groups as likely; with ``s`` the ``k``-th one has a weight of ``k ** -s``.
    """

    groups: Positive = 8
    prefix_tokens: Length = 1024
    suffix_tokens: Length = 128
    zipf: Exponent = 0.0


class MultiTurn(_Made, frozen=True, tag="multi_turn", tag_field="kind"):
    """Conversations: a turn's prompt is all that was said before it, and what the user says now.

    Args:
        turns: of a conversation.
        system_tokens: what all conversations begin with.
        user_tokens: what the user says in a turn.
        think_seconds: mean of the time between an answer and the next turn, drawn from an exponential distribution.
        max_prompt_tokens: a conversation ends before a turn whose prompt would be longer.
    """

    turns: Length = 4
    system_tokens: NotNegative = 0
    user_tokens: Length = 128
    think_seconds: Annotated[float, Meta(ge=0)] = 1.0
    max_prompt_tokens: Positive | None = None


class Rag(_Made, frozen=True, tag="rag", tag_field="kind"):
    """Questions behind retrieved documents.

    Args:
        documents: in the collection.
        document_tokens: length of a document, drawn once per document.
        per_request: documents in a prompt, all different.
        zipf: weight of the ``k``-th document is ``k ** -zipf``.
        order: ``drawn`` puts documents as they were drawn, as a ranking would; ``sorted`` always in the same order, so
            that prompts with the same documents begin alike.
        system_tokens: what all prompts begin with.
        question_tokens: length of what only this prompt has.
    """

    documents: Positive = 100
    document_tokens: Length = 512
    per_request: Length = 3
    zipf: Exponent = 1.0
    order: Literal["drawn", "sorted"] = "drawn"
    system_tokens: NotNegative = 0
    question_tokens: Length = 64


Contents = Independent | SharedPrefix | MultiTurn | Rag


def _check_limits(at_least: int, at_most: int | None) -> None:
    # A ValueError: msgspec makes a message with the path of it.
    if at_most is not None and at_most < at_least:
        raise ValueError(f"at_most {at_most} is below at_least {at_least}")
