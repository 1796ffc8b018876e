"""Both halves of the connector in an engine that checks the KV of every token at every layer."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmcache_kit.instance.store.prefix import chunks_of
from lmcache_kit.kv.layout import KVLayout

CHUNK = 8
PROMPT = list(range(100, 121))  # two chunks and five tokens


def served(engine, prompt, max_tokens=1):
    request = engine.add(prompt, max_tokens)
    engine.run()
    engine.settle()
    return request


def test_the_second_time_all_but_the_last_token_is_loaded(engine):
    made = engine()
    first, second = served(made, PROMPT), served(made, PROMPT)
    assert (first.loaded, second.loaded) == (0, 20)
    assert first.all_token_ids == second.all_token_ids
    assert made.facts["cached_tokens_by_location"] == {"LocalCPUBackend": 20}
    assert made.facts["codecs"] == {"naive": 3}
    counts = made.scheduler.tallies.take()["counts"]
    assert counts == {
        "retrieve_requests": 2,
        "requested_tokens": 42,
        "hit_tokens": 20,
        "store_requests": 2,
        "stored_tokens": 21,
    }  # stored in two steps of 16 tokens at most; the second time there is nothing to store


def test_a_longer_prompt_loads_whole_chunks_and_stores_the_rest(engine):
    made = engine()
    served(made, PROMPT)
    assert served(made, [*PROMPT, 1, 2, 3, 4]).loaded == 16
    assert served(made, [*PROMPT, 1, 2, 3, 4]).loaded == 24
    assert served(made, [7, *PROMPT]).loaded == 0


def test_without_partial_chunks_only_whole_ones_are_stored(engine):
    made = engine(settings={"save_unfull_chunk": False})
    served(made, PROMPT)
    assert made.cache.store.lookup(PROMPT) == {"LocalCPUBackend": 16}
    assert served(made, PROMPT).loaded == 16


@pytest.mark.parametrize("kept", [False, True])
def test_generated_tokens_are_stored_when_asked(engine, kept):
    made = engine(settings={"save_decode_cache": kept})
    request = served(made, PROMPT, max_tokens=30)
    held = made.cache.store.lookup(request.all_token_ids)["LocalCPUBackend"]
    assert held == (48 if kept else 16), "51 tokens in chunks of 8; the partial one of the prompt has another key"
    assert served(made, request.all_token_ids).loaded == (48 if kept else 16)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layerwise", [False, True])
def test_ranks_share_one_instance(engine, ranks, packed, layerwise):
    made = engine(KVLayout(3, 2, 4, "bfloat16"), ranks=ranks, packed=packed, layerwise=layerwise)
    served(made, PROMPT)
    assert served(made, PROMPT).loaded == 20
    assert made.cache.store.stats()["tiers"]["LocalCPUBackend"]["chunks"] == 3


@pytest.mark.parametrize(("writer", "reader"), [(1, 4), (4, 2), (2, 1)])
def test_what_some_ranks_wrote_others_read(engine, tmp_path: Path, writer, reader):
    disk = {"local_cpu": False, "local_disk": f"file://{tmp_path}/disk", "max_local_disk_size": 1}
    layout = KVLayout(2, 4, 4, "float16")
    first = engine(layout, ranks=writer, settings=disk)
    served(first, PROMPT)
    first.close()
    second = engine(layout, ranks=reader, settings=disk, block_size=16, kernel_block_size=8)
    assert served(second, PROMPT).loaded == 20


def test_latent_attention_has_one_plane_that_every_rank_holds(engine):
    made = engine(KVLayout(2, 1, 24, "bfloat16", planes=1), ranks=2)
    served(made, PROMPT)
    assert served(made, PROMPT).loaded == 20


def test_what_the_engine_has_itself_is_not_loaded(engine):
    made = engine(prefix_caching=True)
    served(made, PROMPT)
    assert served(made, PROMPT).loaded == 0, "five blocks of four tokens are the engine's own"
    made.forget()
    assert served(made, PROMPT).loaded == 20
    made.forget()
    served(made, PROMPT[:6])
    again = served(made, PROMPT)
    assert again.loaded == 16, "one block is the engine's own; the load begins in the middle of a chunk"
    assert made.facts["cached_tokens_by_location"] == {"LocalCPUBackend": 16}


def test_what_the_engine_has_itself_is_not_stored_again(engine):
    made = engine(prefix_caching=True)
    served(made, PROMPT)
    made.scheduler.tallies.take()
    made.cache._loop.call_soon_threadsafe(time.sleep, 0.2)  # the cache has other things to do first
    served(made, PROMPT)
    counts = made.scheduler.tallies.take()["counts"]
    assert "store_requests" not in counts


@pytest.mark.parametrize("role", ["loads", "saves"])
def test_a_connector_with_one_role_does_only_that(engine, role):
    made = engine()
    setattr(made.scheduler, f"_{role}", False)
    served(made, PROMPT)
    assert served(made, PROMPT).loaded == 0
    assert made.cache.store.lookup(PROMPT)["LocalCPUBackend"] == (21 if role == "loads" else 0)


@pytest.mark.parametrize("more", [{"lora_request": object()}, {"mm_features": [object()]}], ids=["adapter", "images"])
def test_kv_that_depends_on_more_than_tokens_is_left_alone(engine, more):
    made = engine()
    served(made, PROMPT)
    other = made.add(PROMPT, **more)
    made.run()
    assert other.loaded == 0
    assert made.scheduler.tallies.take()["counts"]["bypassed_requests"] == 1


def test_a_full_staging_memory_shortens_hits_and_skips_saves(engine):
    layout = KVLayout(2, 2, 64, "float32")  # 2 KiB a token: two tokens a page
    small = engine(layout, staging=4096 * 6, batch=64, num_blocks=100)
    served(small, PROMPT)
    counts = small.scheduler.tallies.take()["counts"]
    assert counts["staging_full"] > 0
    assert "stored_tokens" not in counts

    large = engine(layout, batch=8)
    served(large, PROMPT)
    rest = [large.staging.allocate(1) for _ in range(1000)]
    held = [piece for piece in rest if piece is not None]
    assert len(held) < 1000
    for piece in held[-5:]:
        large.staging.release(piece)
    assert 0 < served(large, PROMPT).loaded < 20
    for piece in held[:-5]:
        large.staging.release(piece)


def test_damaged_chunks_are_computed_again(engine, tmp_path: Path):
    disk = {"local_cpu": False, "local_disk": f"file://{tmp_path}/disk", "max_local_disk_size": 1}
    made = engine(settings=disk)
    served(made, PROMPT)
    second = chunks_of(made.cache.store.hasher, made.cache.store.model, PROMPT)[1]
    [file] = (tmp_path / "disk").rglob(f"*{second.name}*")
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    assert served(made, PROMPT).loaded == 8
    assert served(made, PROMPT).loaded == 20, "and stored again"


def test_a_cache_that_is_slow_delays_nobody_for_long(engine, monkeypatch):
    import asyncio

    from lmcache_kit_vllm.options import ConnectorOptions

    made = engine(options=ConnectorOptions(patience=0.0, lookup_timeout=0.2))
    served(made, PROMPT)
    load = made.cache.store.load_prefix
    gate = asyncio.Event()

    async def slow(tokens, **more):
        await gate.wait()
        return await load(tokens, **more)

    monkeypatch.setattr(made.cache.store, "load_prefix", slow)
    request = made.add(PROMPT)
    made.run(10**7)
    assert request.loaded == 0
    assert made.scheduler.tallies.take()["counts"]["lookup_timeouts"] == 1
    made.cache._loop.call_soon_threadsafe(gate.set)


def test_a_load_that_fails_is_a_miss(engine, monkeypatch):
    made = engine()
    served(made, PROMPT)

    async def broken(tokens, **more):
        raise RuntimeError("oops")

    monkeypatch.setattr(made.cache.store, "load_prefix", broken)
    assert served(made, PROMPT).loaded == 0


def test_a_save_that_fails_is_counted_and_forgotten(engine, monkeypatch):
    made = engine()

    async def broken(tokens, kv, **more):
        raise RuntimeError("oops")

    monkeypatch.setattr(made.cache.store, "save", broken)
    served(made, PROMPT)
    assert made.scheduler.tallies.take()["counts"]["store_errors"] > 0


def test_copies_that_fail_reach_neither_the_answer_nor_the_cache(engine, monkeypatch):
    made = engine(layerwise=False)
    broken = made.parts[0].layers[1]
    monkeypatch.setattr(broken, "read", lambda *_: 1 / 0)
    monkeypatch.setattr(made, "_compute", lambda *_: None)
    served(made, PROMPT)
    assert made.cache.store.lookup(PROMPT) == {"LocalCPUBackend": 0}
    assert made.scheduler.tallies.take()["counts"]["copy_errors"] > 0


def test_blocks_that_could_not_be_filled_are_named(engine, monkeypatch):
    made = engine(layerwise=False)
    served(made, PROMPT)
    half = made.parts[0].half
    failed = []
    monkeypatch.setattr(made.parts[0].layers[1], "write", lambda *_: 1 / 0)
    take = half.take_failed_blocks
    monkeypatch.setattr(half, "take_failed_blocks", lambda: failed.extend(take()))
    monkeypatch.setattr(made, "_compute", lambda *_: None)
    request = made.add(PROMPT, max_tokens=1)
    made.step()
    assert set(failed) <= set(range(made.num_blocks))
    assert len(failed) == 5, "20 tokens in blocks of 4"
    made.run()
    assert request.generated == 1


def test_a_closed_cache_is_not_asked(engine):
    made = engine()
    served(made, PROMPT)
    made.cache.close()
    request = made.add(PROMPT)
    made.run()
    assert (request.loaded, request.generated) == (0, 1)


def test_a_clear_after_new_weights_drops_everything(engine):
    made = engine()
    served(made, PROMPT)
    assert made.scheduler.clear()
    assert made.cache.store.lookup(PROMPT) == {"LocalCPUBackend": 0}
    assert served(made, PROMPT).loaded == 0


def test_closing_stores_what_was_copied(engine, tmp_path: Path):
    disk = {"local_cpu": False, "local_disk": f"file://{tmp_path}/disk", "max_local_disk_size": 1}
    made = engine(settings=disk)
    made.add(PROMPT)
    made.run()
    made.close()
    again = engine(settings=disk)
    assert served(again, PROMPT).loaded == 20


SHAPES = st.fixed_dictionaries(
    {
        "block_size": st.sampled_from([2, 4, 8, 16]),
        "ranks": st.sampled_from([1, 2]),
        "batch": st.integers(1, 40),
        "packed": st.booleans(),
        "layerwise": st.booleans(),
        "prefix_caching": st.booleans(),
        "staging": st.sampled_from([2**13, 2**16, 2**20]),
    }
)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 3), st.integers(1, 45), st.integers(1, 12)),
        st.tuples(st.just("step"), st.integers(1, 4)),
        st.tuples(st.just("abort"), st.integers(0, 5)),
        st.tuples(st.just("preempt"), st.integers(0, 5)),
        st.tuples(st.just("forget")),
        st.tuples(st.just("clear")),
        st.tuples(st.just("settle")),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(shape=SHAPES, actions=ACTIONS, decoded=st.booleans(), capacity=st.sampled_from([0.00001, 1]))
def test_any_order_of_events_leaves_true_kv_and_nothing_behind(tmp_path_factory, shape, actions, decoded, capacity):
    from engine import Engine

    texts = [np.random.default_rng(seed).integers(0, 1000, 60).tolist() for seed in range(3)]
    texts.append(texts[0][:20] + texts[1][20:])  # shares a prefix
    made = Engine(
        {
            "chunk_size": CHUNK,
            "local_cpu": True,
            "max_local_cpu_size": capacity,
            "save_decode_cache": decoded,
            "extra_config": {"lmcache_kit": {"data_dir": str(tmp_path_factory.mktemp("data"))}},
        },
        KVLayout(2, 2, 4, "float32"),
        num_blocks=80 // shape["block_size"] + 8,
        **shape,
    )
    try:
        for action, *values in actions:
            if action == "add":
                made.add(texts[values[0]][: values[1]], values[2])
            elif action == "step":
                for _ in range(values[0]):
                    made.step()
            elif action in ("abort", "preempt"):
                queue = made.running if action == "preempt" else made.running + made.waiting
                if queue:
                    getattr(made, action)(queue[values[0] % len(queue)])
            elif action == "forget":
                made.forget()
            elif action == "clear":
                assert made.scheduler.clear()
            else:
                made.settle()
        made.run()
        made.settle()
        for text in texts:
            request = served(made, text)
            assert request.generated == 1
        made.settle()
        if capacity == 1 and shape["staging"] == 2**20 and not shape["prefix_caching"]:
            for text in texts:
                assert served(made, text).loaded == len(text) - 1, "everything fits, so everything is found"
        assert made.staging.free_bytes == made.staging.place[1]
        assert not made.scheduler.is_waiting_for_ranks
    finally:
        made.close()
