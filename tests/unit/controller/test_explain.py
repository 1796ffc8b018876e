"""A lookup that says why it ended."""

import pytest

from lmcache_kit.controller.explain import MAX_CHUNKS
from lmcache_kit.kv.hashing import HashSpec

TOKENS = list(range(10))  # chunks of 4: 4, 4 and 2 tokens


def explain(rig, tokens=TOKENS):
    return rig.core.explain(tokens, rig.core.lookup(tokens))


def why(rig, instance="a", tokens=TOKENS):
    return explain(rig, tokens)["instances"][instance]["why"]


def test_chunks_are_listed_with_ranges_keys_and_holders(rig):
    rig.register("a")
    rig.register("b")
    keys = rig.hashes(TOKENS)
    rig.admit(keys[:2], "a")
    rig.admit(keys[1:], "b", location="disk")
    (spec,) = explain(rig)["specs"]
    assert spec["chunk_size"] == 4
    assert spec["instances"] == ["a", "b"]
    assert [(chunk["tokens"], chunk["key"]) for chunk in spec["chunks"]] == [
        ([0, 4], str(keys[0])),
        ([4, 8], str(keys[1])),
        ([8, 10], str(keys[2])),
    ]
    assert [chunk["holders"] for chunk in spec["chunks"]] == [
        {"a": ["cpu"]},
        {"a": ["cpu"], "b": ["disk"]},
        {"b": ["disk"]},
    ]
    assert "held by b/disk, but that holder lacks chunk 0" in spec["ended"]


def test_chunk_that_nobody_holds(rig):
    rig.register()
    rig.admit(rig.hashes(TOKENS)[:2])
    assert explain(rig)["specs"][0]["ended"] == "no instance holds chunk 2"
    assert "it has 2 tokens only" in why(rig)


def test_everything_held_and_nothing_asked(rig):
    rig.register()
    rig.admit(rig.hashes(TOKENS))
    assert explain(rig)["specs"][0]["ended"] == "every chunk is held"
    assert why(rig) == "the whole prefix is held"
    assert explain(rig, [])["specs"][0]["ended"] == "there are no tokens to look up"
    assert why(rig, tokens=[]) == "there is nothing to look up"


def test_a_tail_that_is_never_kept(rig):
    rig.register(chunk_size=4, save_unfull_chunk=False)
    rig.admit(rig.hashes(TOKENS)[:2])
    assert "the last 2 tokens fill no chunk of 4" in explain(rig)["specs"][0]["ended"]
    assert why(rig) == "the whole prefix is held"
    assert explain(rig, [1, 2])["specs"][0]["chunks"] == []


def test_nobody_registered(rig):
    found = explain(rig)
    assert found["specs"] == []
    assert "no instance is registered" in found["hints"][0]


def test_empty_syncing_and_dead_workers_say_so(rig):
    rig.heartbeat()
    assert "being synced (worker_re_registered)" in why(rig)
    rig.start_sync("s", 2)
    assert "batches are coming" in why(rig)
    rig.batch("s", 0, [])
    rig.batch("s", 1, [])
    assert "holds no chunk" in why(rig)
    rig.clock.advance(100)
    rig.core.tick()
    assert "missed its heartbeats" in why(rig)


def test_a_rank_that_lacks_a_chunk_is_named(rig):
    rig.register(worker=0)
    rig.register(worker=1)
    rig.admit(rig.hashes(TOKENS), worker=0)
    rig.admit(rig.hashes(TOKENS)[:1], worker=1)
    assert why(rig) == "only some workers hold chunk 1: a/1 lack it"


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (HashSpec(chunk_size=8), "match chunk size 8, builtin, NONE_HASH 0"),
        (HashSpec(chunk_size=4, algorithm="blake3"), "match chunk size 4, blake3, NONE_HASH 0"),
    ],
)
def test_other_hash_settings_are_recognised(rig, spec, text):
    rig.register()
    rig.admit(rig.hashes(TOKENS, spec))
    assert text in why(rig)


def test_a_worker_that_announced_nothing_is_told_what_was_assumed(rig):
    rig.register()
    rig.admit(rig.hashes(TOKENS, HashSpec(4, none_hash=99)))
    assert "announced no hash settings" in why(rig)


def test_long_prompts_are_listed_up_to_a_bound(rig):
    rig.register(chunk_size=1)
    tokens = list(range(MAX_CHUNKS + 5))
    rig.admit(rig.hashes(tokens, HashSpec(1)))
    (spec,) = explain(rig, tokens)["specs"]
    assert (len(spec["chunks"]), spec["num_chunks"], spec["truncated"]) == (MAX_CHUNKS, MAX_CHUNKS + 5, True)
    assert spec["ended"] == "every chunk is held"
