"""Prompts of these tests, as token ids that every part of them can make again."""

from __future__ import annotations

import random

__all__ = ["CATALOG", "LONG", "VOCABULARY", "prompt", "sharing"]

VOCABULARY = 2048


def prompt(name: str, length: int) -> list[int]:
    """``length`` token ids, always the same for a name, without the special ones; longer ones begin as shorter ones."""
    generator = random.Random(name)
    return [generator.randrange(2, VOCABULARY) for _ in range(length)]


def sharing(prefix: str, shared: int, name: str, length: int) -> list[int]:
    """``length`` token ids, the first ``shared`` of them those of the prompt ``prefix``."""
    return prompt(prefix, shared) + prompt(name, length - shared)


CATALOG = {
    "six hundred": prompt("six hundred", 600),
    "with vllm's own": prompt("with vllm's own", 600),
    "abandoned": prompt("abandoned", 3500),
    "shared": prompt("shared", 640),
    "shared one": sharing("shared", 512, "one", 700),
    "shared two": sharing("shared", 512, "two", 611),
    "lossless": prompt("lossless", 400),
    "lossy": prompt("lossy", 400),
    "remote": prompt("remote", 600),
    "frozen": prompt("frozen", 500),
    "moved": prompt("moved", 600),
    "one rank": prompt("one rank", 500),
    "two ranks": prompt("two ranks", 500),
    "damaged": prompt("damaged", 700),
    **{f"load {number}": prompt(f"load {number}", 300 + 29 * number) for number in range(6)},
    **{f"batch {number}": prompt(f"batch {number}", 130 + 77 * number) for number in range(5)},
}
"""Prompts whose first output tokens vLLM tells by itself, see ``expected``."""

LONG = {f"long {number}": prompt(f"long {number}", 200) for number in range(6)}
"""Prompts whose output is long."""
