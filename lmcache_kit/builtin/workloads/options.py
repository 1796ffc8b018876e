"""Options of the built-in workloads; light, because every `--help` and schema reads them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from lmcache_kit.contracts.records import Options

__all__ = [
    "ClearOptions",
    "CompletionsOptions",
    "GenerateOptions",
    "JobOptions",
    "LookupOptions",
    "MoveOptions",
    "PinOptions",
    "Place",
    "PromptOptions",
]

Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0)]


class PromptOptions(Options, frozen=True):
    """One prompt, and which instance it goes to (left out: the routing decides)."""

    text: Annotated[str, Meta(min_length=1)]
    instance: str | None = None


class GenerateOptions(Options, frozen=True):
    """Prompts made of a text: each group shares a passage of it, and each prompt of a group ends with a question.

    Args:
        text_file: English text that the passages are cut from.
        questions_file: questions, one per line; they are used in turn.
        groups: number of passages.
        per_group: prompts per passage.
        passage_words: length of a passage.
    """

    text_file: str
    questions_file: str
    groups: Positive = 2
    per_group: Positive = 3
    passage_words: Positive = 400


class CompletionsOptions(Options, frozen=True):
    """Complete prompts and time them. Exactly one source of prompts is named; ``compare_to`` counts as one.

    Args:
        prompts: texts, or mappings with ``text`` and ``instance``.
        prompts_file: a text file with one prompt per paragraph (separated by empty lines).
        generate: prompts made of a text.
        prompts_of: an earlier completions workload: the same prompts to the same instances.
        compare_to: an earlier completions workload whose texts this one's are compared with.
        instances: which instances serve; left out: all.
        routing: ``round_robin`` deals prompts out in turn; ``by_group`` sends a group's prompts to one instance.
        max_tokens: output tokens per prompt.
        temperature: 0 is greedy.
        stream: stream the answer, which is how time to first token is seen from the outside.
        concurrency: most requests in flight.
    """

    prompts: list[str | PromptOptions] = msgspec.field(default_factory=list)
    prompts_file: str | None = None
    generate: GenerateOptions | None = None
    prompts_of: str | None = None
    compare_to: str | None = None
    instances: list[str] = msgspec.field(default_factory=list)
    routing: Literal["round_robin", "by_group"] = "round_robin"
    max_tokens: Positive = 16
    temperature: Annotated[float, Meta(ge=0)] = 0.0
    stream: bool = True
    concurrency: Positive = 1


class LookupOptions(Options, frozen=True):
    """Look every prompt of an earlier completions workload up through the controller.

    Args:
        of: the earlier workload.
        settle_seconds: how long the controller may take to hear of the last chunks before the measurement starts.
    """

    of: str
    settle_seconds: Seconds = 5.0


class JobOptions(Options, frozen=True):
    """Compress or decompress what an earlier completions workload left in a tier.

    Args:
        of: the earlier workload; each of its prompts is one job on the instance that served it.
        method: compression method.
        location: the tier.
        timeout_seconds: for one job.
    """

    of: str
    method: str
    location: str = "LocalCPUBackend"
    timeout_seconds: Seconds = 60.0


class Place(Options, frozen=True):
    """A tier of an instance."""

    instance: str
    location: str = "LocalCPUBackend"


class MoveOptions(Options, frozen=True):
    """Move prefixes from one tier to another, of the same or another instance.

    Args:
        of: an earlier completions workload.
        source: where from (``from`` in YAML).
        target: where to (``to`` in YAML).
        prompts: positions of its prompts, counted from 0; left out: the first one that the source instance served.
        copy: keep the source's chunks.
        timeout_seconds: for one job.
    """

    of: str
    source: Place = msgspec.field(name="from")
    target: Place = msgspec.field(name="to")
    prompts: list[NotNegative] = msgspec.field(default_factory=list)
    copy: bool = False
    timeout_seconds: Seconds = 60.0


class PinOptions(Options, frozen=True):
    """Pin the prompts of an earlier completions workload, or release them.

    Args:
        of: the earlier workload.
        location: the tier.
        owner: who pins; only the same owner can release.
        ttl_seconds: how long a pin holds; left out: until released. Not for releasing.
    """

    of: str
    location: str = "LocalCPUBackend"
    owner: str = ""
    ttl_seconds: Seconds | None = None


class ClearOptions(Options, frozen=True):
    """Drop everything unpinned from a tier.

    Args:
        location: the tier.
        instances: which instances; left out: all that have the tier.
    """

    location: str = "LocalCPUBackend"
    instances: list[str] = msgspec.field(default_factory=list)
