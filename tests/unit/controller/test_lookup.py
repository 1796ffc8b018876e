"""Prefixes, holders, several workers, several hash specs."""

from lmcache_kit.kv.hashing import HashSpec

TOKENS = list(range(100, 110))  # chunks of 4: 4, 4 and 2 tokens


def test_nobody_registered_is_an_empty_answer(rig):
    result = rig.core.lookup(TOKENS)
    assert (result.layout, result.holders, result.prefix, result.longest) == ({}, {}, {}, 0)


def test_partial_last_chunk_counts_its_tokens(rig):
    rig.register()
    rig.admit(rig.hashes(TOKENS))
    assert rig.core.lookup(TOKENS).layout == {"a": ("cpu", 10)}
    assert rig.core.lookup(TOKENS[:9]).layout == {"a": ("cpu", 8)}, "a partial chunk is another chunk"


def test_every_holder_is_credited_with_what_it_holds_from_token_0(rig):
    first, second, third = rig.hashes(TOKENS)
    for name in "abc":
        rig.register(name)
    rig.admit([first, second, third], "a")
    rig.admit([first], "b")
    rig.admit([second, third], "c")
    result = rig.core.lookup(TOKENS)
    assert result.holders == {"a": {"cpu": 10}, "b": {"cpu": 4}}
    assert result.prefix == {"a": 10, "b": 4}, "a suffix serves nobody"


def test_locations_of_one_instance_join_their_prefix(rig):
    first, second, third = rig.hashes(TOKENS)
    rig.register()
    rig.admit([first, third], location="cpu")
    rig.admit([second], location="disk")
    result = rig.core.lookup(TOKENS)
    assert result.holders == {"a": {"cpu": 4}}
    assert result.prefix == {"a": 10}
    assert result.layout == {"a": ("cpu", 4)}


def test_best_location_is_the_longest_then_the_faster_as_announced(rig):
    rig.register(locations=["cpu", "disk"])
    keys = rig.hashes(TOKENS)
    rig.admit(keys[:1], location="disk")
    rig.admit(keys[:1], location="cpu")
    assert rig.core.lookup(TOKENS).layout == {"a": ("cpu", 4)}
    rig.admit(keys[1:2], location="disk")
    assert rig.core.lookup(TOKENS).layout == {"a": ("disk", 8)}
    assert list(rig.core.lookup(TOKENS).holders["a"]) == ["cpu", "disk"]


def test_memory_is_the_faster_location_of_a_worker_that_announced_none(rig):
    rig.register()
    for location in ("LocalDiskBackend", "Another", "LocalCPUBackend"):
        rig.admit(rig.hashes(TOKENS)[:1], location=location)
    result = rig.core.lookup(TOKENS)
    assert result.layout == {"a": ("LocalCPUBackend", 4)}
    assert list(result.holders["a"]) == ["LocalCPUBackend", "LocalDiskBackend", "Another"]


def test_a_chunk_counts_when_all_ranks_hold_their_share(rig):
    keys = rig.hashes(TOKENS)
    rig.register(worker=0)
    rig.register(worker=1)
    rig.admit(keys, worker=0)
    assert rig.core.lookup(TOKENS).holders == {}
    rig.admit(keys[:2], worker=1)
    assert rig.core.lookup(TOKENS).holders == {"a": {"cpu": 8}}
    rig.evict(keys[:1], worker=1)
    assert rig.core.lookup(TOKENS).prefix == {}


def test_a_rank_that_announced_no_such_location_is_not_asked_for_there(rig):
    keys = rig.hashes(TOKENS)
    rig.register(worker=0, locations=["cpu", "shared"])
    rig.register(worker=1, locations=["cpu"])
    rig.admit(keys, worker=0, location="shared")
    assert rig.core.lookup(TOKENS).holders == {}, "rank 1 holds nothing at all, so the instance cannot serve it"
    rig.admit(keys, worker=1)
    result = rig.core.lookup(TOKENS)
    assert result.holders == {"a": {"shared": 10}}
    assert result.prefix == {"a": 10}


def test_each_instance_is_looked_up_under_its_own_hash_spec(rig):
    small = HashSpec(chunk_size=3, algorithm="sha256_cbor", none_hash=7)
    full_only = HashSpec(chunk_size=4, save_unfull_chunk=False)
    rig.register("a")
    rig.register("b", chunk_size=3, hash_algorithm="sha256_cbor", none_hash=7)
    rig.register("c", chunk_size=4, save_unfull_chunk=False)
    rig.admit(rig.hashes(TOKENS), "a")
    rig.admit(rig.hashes(TOKENS, small), "b")
    rig.admit(rig.hashes(TOKENS, full_only), "c")
    assert rig.core.lookup(TOKENS).layout == {"a": ("cpu", 10), "b": ("cpu", 10), "c": ("cpu", 8)}


def test_keys_outside_64_bits_are_found(rig):
    rig.register("b", chunk_size=4, none_hash=-(2**80))
    keys = rig.hashes(TOKENS, HashSpec(4, none_hash=-(2**80)))
    rig.admit(keys, "b")
    assert rig.core.lookup(TOKENS).layout == {"b": ("cpu", 10)}


def test_thousand_instances(rig):
    keys = rig.hashes(TOKENS)
    for number in range(1000):
        rig.register(f"i{number}")
        rig.admit(keys[: number % 4], f"i{number}")
    result = rig.core.lookup(TOKENS)
    assert len(result.prefix) == 750
    assert result.prefix["i3"] == 10
    assert result.prefix["i1"] == 4


def test_no_tokens_is_an_empty_answer(rig):
    rig.register()
    rig.admit(rig.hashes(TOKENS))
    assert rig.core.lookup([]).layout == {}


def test_peer_lookup_names_the_best_other_holder_of_the_same_rank(rig):
    from lmcache_kit.messages import BatchedP2PLookupMsg

    keys = rig.hashes(TOKENS)
    for name, url in (("a", "a:1"), ("b", "b:1"), ("c", None), ("d", "d:1")):
        rig.register(name, peer_init_url=url)
    rig.register("b", worker=1, peer_init_url="b:2")
    rig.admit(keys, "a")
    rig.admit(keys[:1], "b")
    rig.admit(keys, "b", worker=1)
    rig.admit(keys, "c")
    rig.admit(keys[:2], "d")
    ask = BatchedP2PLookupMsg(hashes=keys, instance_id="a", worker_id=0)
    assert rig.core.on_request(ask).layout_info == [("d", "cpu", 2, "d:1")]
    stranger = BatchedP2PLookupMsg(hashes=keys, instance_id="x", worker_id=0)
    assert rig.core.on_request(stranger).layout_info == [("", "", 0, "")]
    nothing = BatchedP2PLookupMsg(hashes=[12345], instance_id="a", worker_id=0)
    assert rig.core.on_request(nothing).layout_info == [("", "", 0, "")]
