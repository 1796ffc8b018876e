from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from lmcache_kit.builtin.traces.mooncake import MooncakeReader
from lmcache_kit.contracts.trace import TraceRecord
from lmcache_kit.report import trace_info

FORM = MooncakeReader.format
prompts = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=12)


@settings(deadline=None)
@given(prompts, st.lists(st.booleans(), min_size=12, max_size=12))
def test_hit_rates_are_those_of_a_prefix_tree(chains: list[list[int]], partial: list[bool]) -> None:
    """Oracle: a set of all prefixes seen; ids are made unique by prefix, as chained ids are."""
    numbers: dict[tuple[int, ...], int] = {}
    seen: set[tuple[int, ...]] = set()
    records, hits, total = [], 0, 0
    for chain, cut in zip(chains, partial, strict=False):
        prefixes = [tuple(chain[: length + 1]) for length in range(len(chain))]
        ids = [numbers.setdefault(prefix, len(numbers)) for prefix in prefixes]
        tokens = len(ids) * FORM.block_size - (100 if cut else 0)
        known = 0
        while known < len(prefixes) and prefixes[known] in seen:
            known += 1
        seen.update(prefixes)
        hits += min(known * FORM.block_size, tokens)
        total += tokens
        full, tail = divmod(tokens, FORM.block_size)
        records.append(
            TraceRecord(
                arrival=0.0,
                input_tokens=tokens,
                output_tokens=0,
                block_ids=tuple(ids[:full]),
                tail_tokens=tail,
                tail_id=ids[full] if tail else None,
            )
        )
    info = trace_info(records, FORM)
    assert info["token_hit_rate"] == hits / total
    assert info["distinct_block_ids"] == len(seen)
