"""Completions: send prompts, time them, see where their KV came from, and compare texts with an earlier run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmcache_kit.builtin.workloads.measures import measured, run_limited
from lmcache_kit.builtin.workloads.options import CompletionsOptions, PromptOptions
from lmcache_kit.builtin.workloads.prompts import make_prompts, route
from lmcache_kit.builtin.workloads.served import Prompt, Served, instance_of, served
from lmcache_kit.client import cache_facts
from lmcache_kit.contracts.workload import Workload, WorkloadContext, WorkloadResult
from lmcache_kit.errors import ConfigError
from lmcache_kit.report.percentiles import summarize
from lmcache_kit.units import format_count

__all__ = ["CompletionsWorkload"]


@dataclass(frozen=True, slots=True)
class _Request:
    """One answered request: what it took and what the instance says of its cache."""

    served: Served
    seconds: float
    usage: dict[str, Any]
    facts: dict[str, Any]

    @property
    def cached_tokens(self) -> int:
        return int((self.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


class CompletionsWorkload(Workload):
    """See :class:`~lmcache_kit.builtin.workloads.options.CompletionsOptions`."""

    kind = "completions"

    def __init__(self, options: CompletionsOptions) -> None:
        own = [bool(options.prompts), options.prompts_file is not None, options.generate is not None]
        if sum(own) + (options.prompts_of is not None) > 1:
            raise ConfigError(
                "completions name more than one source of prompts",
                hint="keep one of prompts, prompts_file, generate, prompts_of",
            )
        if not any(own) and options.prompts_of is None and options.compare_to is None:
            raise ConfigError(
                "completions name no prompts", hint="give prompts, prompts_file, generate, prompts_of or compare_to"
            )
        self._options = options
        self._again = None if any(own) else options.prompts_of or options.compare_to

    def needs(self) -> Sequence[str]:
        options = self._options
        return [name for name in (options.prompts_of, options.compare_to) if name is not None]

    def references(self) -> Sequence[tuple[str, str]]:
        written = [each.instance for each in self._options.prompts if isinstance(each, PromptOptions)]
        return [("instance", name) for name in (*self._options.instances, *written) if name is not None]

    async def run(self, context: WorkloadContext) -> WorkloadResult:
        prompts = self._prompts(context)
        instances = len({prompt.instance for prompt in prompts})
        context.progress(f"{format_count(len(prompts), 'completions')} on {format_count(instances, 'instances')}")
        begin = context.clock.now()
        requests = await run_limited(
            enumerate(prompts), lambda item: self._one(context, *item), self._options.concurrency
        )
        seconds = context.clock.now() - begin
        entries = [request.served for request in requests]
        values = _values(requests, seconds)
        if self._options.compare_to is not None:
            values |= _comparison(entries, self._options.compare_to, context)
        context.notes[context.name] = entries
        return WorkloadResult(name=context.name, kind=self.kind, values=values)

    def _prompts(self, context: WorkloadContext) -> list[Prompt]:
        if self._again is not None:
            prompts = [
                Prompt(entry.prompt.text, entry.prompt.group, None if self._options.instances else entry.instance_id)
                for entry in served(context, self._again)
            ]
        else:
            prompts = make_prompts(self._options, context.base_dir, context.rng)
        return route(prompts, self._options.instances or list(context.instances), self._options.routing)

    async def _one(self, context: WorkloadContext, position: int, prompt: Prompt) -> _Request:
        assert prompt.instance is not None, "routed"
        client = instance_of(context, prompt.instance).client
        options = self._options
        more: dict[str, Any] = {"max_tokens": options.max_tokens, "temperature": options.temperature}
        if options.temperature > 0:
            more["seed"] = context.rng.randrange(2**31)
        ttft: float | None = None
        if options.stream:
            completion = await client.stream_complete(prompt.text, **more)
            text, ttft, seconds = completion.text, completion.ttft_seconds, completion.seconds
            raw = completion.raw
        else:
            begin = context.clock.now()
            raw = await client.complete(prompt.text, **more)
            seconds = context.clock.now() - begin
            text = raw["choices"][0]["text"]
        request = _Request(
            Served(prompt, prompt.instance, text, ttft, []), seconds, raw.get("usage", {}), cache_facts(raw)
        )
        context.emit(
            "request",
            position=position,
            instance=prompt.instance,
            group=prompt.group,
            prompt_tokens=request.usage.get("prompt_tokens"),
            completion_tokens=request.usage.get("completion_tokens"),
            cached_tokens=request.cached_tokens,
            ttft_seconds=ttft,
            seconds=seconds,
            text=text,
            cache=request.facts,
        )
        return request


def _values(requests: Sequence[_Request], seconds: float) -> dict[str, Any]:
    def total(key: str) -> int:
        return sum(int(request.usage.get(key) or 0) for request in requests)

    def over(key: str) -> list[float]:
        return [request.facts[key] for request in requests if key in request.facts]

    def ttft(only: Sequence[_Request]) -> dict[str, float] | None:
        return summarize([each.served.ttft_seconds for each in only if each.served.ttft_seconds is not None])

    def counted(key: str) -> dict[str, int] | None:
        """None when the instance of a request that had cached tokens does not tell; without any there is nothing."""
        if any(request.cached_tokens and key not in request.facts for request in requests):
            return None
        counts: Counter[str] = Counter()
        for request in requests:
            counts.update(request.facts.get(key, {}))
        return dict(counts)

    stored = over("stored_tokens")
    prompt_tokens = total("prompt_tokens")
    cached = sum(request.cached_tokens for request in requests)
    through = _bytes(requests)
    return measured(
        counts={
            "requests": len(requests),
            "instances": len({request.served.instance_id for request in requests}),
            "hits": sum(request.cached_tokens > 0 for request in requests),
        },
        tokens=prompt_tokens,
        seconds=seconds,
        latencies=[request.seconds for request in requests],
        **through,
        completion_tokens=total("completion_tokens"),
        cached_tokens=cached,
        hit_rate=cached / prompt_tokens if prompt_tokens else None,
        stored_tokens=int(sum(stored)) if len(stored) == len(requests) else None,
        cached_tokens_by_location=counted("cached_tokens_by_location"),
        chunks_read_by_codec=counted("codecs"),
        loaded_ratio=_loaded_ratio(requests),
        ttft_seconds=ttft(requests),
        ttft_cold_seconds=ttft([request for request in requests if request.cached_tokens == 0]),
        ttft_cached_seconds=ttft([request for request in requests if request.cached_tokens > 0]),
        prefill_seconds=summarize(over("prefill_seconds")),
        load_seconds=summarize(over("load_seconds")),
    )


def _bytes(requests: Sequence[_Request]) -> dict[str, int | None]:
    """KV that went through the cache, stored or loaded: as the engine has it, and as the tiers hold it.

    None with an instance that does not tell, such as a real vLLM server.
    """
    raw = stored = 0
    for request in requests:
        facts = request.facts
        if not facts.keys() >= {"loaded_bytes", "loaded_kv_bytes", "stored_bytes", "stored_kv_bytes"}:
            return {"bytes_before": None, "bytes_after": None}
        raw += facts["loaded_kv_bytes"] + facts["stored_kv_bytes"]
        stored += facts["loaded_bytes"] + facts["stored_bytes"]
    return {"bytes_before": raw, "bytes_after": stored}


def _loaded_ratio(requests: Sequence[_Request]) -> float | None:
    """Bytes of KV that was loaded to the bytes it was loaded from; None when nothing was, or nobody told."""
    raw = stored = 0
    for request in requests:
        if request.cached_tokens and not request.facts.keys() >= {"loaded_bytes", "loaded_kv_bytes"}:
            return None
        raw += request.facts.get("loaded_kv_bytes", 0)
        stored += request.facts.get("loaded_bytes", 0)
    return raw / stored if stored else None


def _comparison(entries: Sequence[Served], name: str, context: WorkloadContext) -> dict[str, Any]:
    """How many texts are the same as those of the earlier workload, prompt by prompt, and who was faster."""
    earlier = served(context, name)
    if len(earlier) != len(entries):
        raise ConfigError(f"{context.name} has {len(entries)} prompts, {name} had {len(earlier)}: nothing to compare")
    mine, its = _median_ttft(entries), _median_ttft(earlier)
    known = all(entry.text is not None for entry in (*entries, *earlier))
    equal = [mine.text == its.text for mine, its in zip(entries, earlier, strict=True)] if known else []
    return {
        "compared_to": name,
        "text_equal": all(equal) if known else None,
        "text_equal_count": sum(equal) if known else None,
        "text_differs_at": [position for position, same in enumerate(equal) if not same],
        "ttft_ratio": mine / its if mine is not None and its else None,
    }


def _median_ttft(entries: Sequence[Served]) -> float | None:
    summary = summarize([entry.ttft_seconds for entry in entries if entry.ttft_seconds is not None])
    return None if summary is None else summary["p50"]
