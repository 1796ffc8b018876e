"""Prompts: written out, read from a file, or cut from a text so that groups share a prefix."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

from lmcache_kit.builtin.workloads.options import CompletionsOptions, GenerateOptions, PromptOptions
from lmcache_kit.builtin.workloads.served import Prompt
from lmcache_kit.errors import ConfigError

__all__ = ["generate_prompts", "make_prompts", "route"]


def make_prompts(options: CompletionsOptions, base_dir: Path, rng: random.Random) -> list[Prompt]:
    """The prompts that the options write, read or generate. Raises ConfigError when there are none."""
    if options.generate is not None:
        return generate_prompts(options.generate, base_dir, rng)
    if options.prompts_file is not None:
        text = _read(base_dir, options.prompts_file)
        prompts = [Prompt(part.strip(), group) for group, part in enumerate(re.split(r"\n\s*\n", text)) if part.strip()]
        if not prompts:
            raise ConfigError(f"{options.prompts_file!r} holds no prompts")
        return prompts
    return [
        Prompt(each.text, group, each.instance) if isinstance(each, PromptOptions) else Prompt(each, group)
        for group, each in enumerate(options.prompts)
    ]


def generate_prompts(options: GenerateOptions, base_dir: Path, rng: random.Random) -> list[Prompt]:
    """Groups of prompts; passages start at paragraphs drawn from ``rng``, as far apart as the text allows."""
    paragraphs = [each.split() for each in re.split(r"\n\s*\n", _read(base_dir, options.text_file)) if each.strip()]
    questions = [line.strip() for line in _read(base_dir, options.questions_file).splitlines() if line.strip()]
    total = sum(len(paragraph) for paragraph in paragraphs)
    if total < options.passage_words:
        raise ConfigError(f"{options.text_file!r} has {total} words, too few for passage_words {options.passage_words}")
    if not questions:
        raise ConfigError(f"{options.questions_file!r} holds no questions")
    starts = _starts([len(paragraph) for paragraph in paragraphs], options, rng)
    prompts: list[Prompt] = []
    for group, start in enumerate(starts):
        passage = _passage(paragraphs, start, options.passage_words)
        for number in range(options.per_group):
            question = questions[(group * options.per_group + number) % len(questions)]
            prompts.append(Prompt(f"{passage}\n\nQuestion: {question}\nAnswer:", group))
    return prompts


def route(prompts: Sequence[Prompt], instances: Sequence[str], routing: str) -> list[Prompt]:
    """Every prompt with its instance: its own, or the one that the routing gives it."""
    routed = []
    for position, prompt in enumerate(prompts):
        place = prompt.group if routing == "by_group" else position
        instance = prompt.instance or instances[place % len(instances)]
        routed.append(Prompt(prompt.text, prompt.group, instance))
    return routed


def _read(base_dir: Path, name: str) -> str:
    path = base_dir / name
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None


def _starts(lengths: Sequence[int], options: GenerateOptions, rng: random.Random) -> list[int]:
    """Paragraphs where the passages start: distinct while there are enough that leave room for a whole passage."""
    room, possible = 0, []
    for index in range(len(lengths) - 1, -1, -1):
        room += lengths[index]
        if room >= options.passage_words:
            possible.append(index)
    possible.reverse()
    offset = rng.randrange(len(possible))
    stride = max(1, len(possible) // options.groups)
    return [possible[(offset + group * stride) % len(possible)] for group in range(options.groups)]


def _passage(paragraphs: Sequence[Sequence[str]], start: int, words: int) -> str:
    parts: list[str] = []
    for paragraph in paragraphs[start:]:
        taken = paragraph[:words]
        parts.append(" ".join(taken))
        words -= len(taken)
        if not words:
            break
    return "\n\n".join(parts)
