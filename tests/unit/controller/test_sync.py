"""Full syncs, sequence gaps, and changes that arrive meanwhile."""

import pytest

from lmcache_kit.messages import FullSyncEndMsg

TOKENS = list(range(12))


@pytest.fixture
def keys(rig):
    rig.register()
    return rig.hashes(TOKENS)


def held(rig):
    return rig.core.lookup(TOKENS).prefix.get("a", 0)


def end(rig, sync_id, total, location="cpu"):
    rig.core.on_pushed(
        FullSyncEndMsg(instance_id="a", worker_id=0, location=location, sync_id=sync_id, actual_total_keys=total)
    )


def test_batches_in_any_order_and_twice_replace_what_was_known(rig, keys):
    rig.admit([111, *keys])
    assert rig.start_sync("s", 3).accepted
    rig.batch("s", 2, [keys[2]])
    rig.core.receive_pushed(b"\x00")
    assert rig.status("s").missing_batches == [0, 1]
    rig.batch("s", 0, [keys[0]])
    with pytest.raises(Exception, match="belongs to no running sync"):
        rig.batch("s", 0, [keys[0]])
    assert held(rig) == 12, "what was known stays visible until the sync is complete"
    rig.batch("s", 1, [])
    status = rig.status("s")
    assert (status.is_complete, status.can_exit_freeze, status.missing_batches) == (True, True, [])
    assert held(rig) == 4
    assert rig.core.contents.key_counts(rig.core.registry.find("a", 0)) == {"cpu": 2}


def test_admits_and_evicts_during_a_sync_win_over_its_batches(rig, keys):
    rig.admit(keys)
    rig.start_sync("s", 2)
    rig.evict([keys[2]])
    rig.batch("s", 0, keys)  # the snapshot was taken before the eviction
    rig.admit([777])
    rig.batch("s", 1, [])
    assert held(rig) == 8
    index = rig.core.contents.index
    assert 777 in index.masks


def test_a_new_sync_supersedes_the_old_one(rig, keys):
    rig.start_sync("old", 2)
    rig.batch("old", 0, [1])
    rig.start_sync("new", 1)
    with pytest.raises(Exception, match="no running sync"):
        rig.batch("old", 1, [2])
    rig.batch("new", 0, keys)
    assert held(rig) == 12
    assert rig.status("old").can_exit_freeze
    assert not rig.status("old").is_complete
    while rig.core.tick():
        pass
    assert set(rig.core.contents.index.masks) == set(keys)


def test_the_same_start_again_goes_on_where_it_was(rig, keys):
    rig.start_sync("s", 2)
    rig.batch("s", 0, keys[:2])
    assert rig.start_sync("s", 2).accepted
    rig.batch("s", 1, keys[2:])
    assert held(rig) == 12


def test_an_empty_location_ends_with_its_end_message(rig, keys):
    rig.admit(keys)
    rig.start_sync("s", 0)
    end(rig, "s", 0)
    assert rig.status("s").is_complete
    assert held(rig) == 0


def test_a_lost_end_message_does_not_matter(rig, keys):
    rig.start_sync("s", 0)
    assert rig.status("s").is_complete


def test_an_end_that_disagrees_is_counted(rig, keys):
    rig.start_sync("s", 1)
    rig.batch("s", 0, keys)
    end(rig, "s", 5)
    assert rig.core.counters.sync_mismatches == 1


def test_one_sync_id_names_one_location(rig, keys):
    rig.start_sync("s", 1, "cpu")
    answer = rig.start_sync("s", 1, "disk")
    assert not answer.accepted
    assert "already used for cpu" in answer.error_msg


@pytest.mark.parametrize("batches", [-1, 2**40])
def test_impossible_batch_counts_are_refused(rig, keys, batches):
    assert not rig.start_sync("s", batches).accepted


def test_batch_ids_outside_the_sync_are_refused(rig, keys):
    rig.start_sync("s", 2)
    for number in (-1, 2, 2**63):
        with pytest.raises(Exception, match="no running sync"):
            rig.batch("s", number, [1])


def test_missing_batches_are_reported_in_bounded_pieces(rig, keys):
    rig.start_sync("s", 2**20)
    assert rig.status("s").missing_batches == list(range(1000))


def test_a_gap_asks_for_a_sync_with_the_next_heartbeat(rig, keys):
    assert rig.heartbeat() == []
    rig.admit(keys[:1])
    rig.operate("admit", keys[1:2])  # this frame is lost
    rig.admit(keys[2:])
    assert rig.core.counters.discontinuities == 1
    assert rig.heartbeat() == ["sequence_gap"]
    assert rig.heartbeat() == [], "it was asked just now"
    rig.start_sync("s", 1)
    rig.batch("s", 0, keys)
    assert rig.heartbeat() == []
    assert held(rig) == 12


def test_a_frame_that_comes_twice_changes_nothing_and_is_noticed(rig, keys):
    first = rig.operate("admit", keys)
    rig.core.on_pushed(first)
    rig.evict(keys)
    rig.core.on_pushed(first)
    assert held(rig) == 0
    assert rig.heartbeat() == ["sequence_repeated"]


def test_a_worker_that_counts_anew_without_registering_heals_by_a_sync(rig, keys):
    rig.admit(keys)
    rig.seqs.clear()
    rig.admit([5])
    assert rig.heartbeat() == ["sequence_repeated"]
    rig.start_sync("s", 1)
    rig.batch("s", 0, [5])
    rig.admit(keys)
    assert held(rig) == 12
    assert rig.heartbeat() == []


def test_a_gap_during_a_sync_asks_again(rig, keys):
    rig.start_sync("s", 1)
    rig.admit(keys[:1])
    rig.operate("admit", [1])
    rig.admit([2])
    rig.batch("s", 0, keys)
    assert rig.heartbeat() == ["sequence_gap"]


def test_operations_missed_before_the_first_one_seen(rig, keys):
    rig.operate("admit", [1, 2, 3])
    rig.admit(keys)
    assert rig.heartbeat() == ["operations_missed"]


def test_the_first_numbers_after_a_sync_are_taken_as_they_are(rig):
    rig.seqs["a", 0, "cpu"] = 50
    assert rig.heartbeat() == ["worker_re_registered"]
    rig.start_sync("s", 1)
    rig.batch("s", 0, [])
    rig.admit([1])
    assert rig.heartbeat() == []


def test_workers_that_never_count_are_taken_at_their_word(rig, keys):
    from lmcache_kit.messages import BatchedKVOperationMsg, KVAdmitMsg, KVEvictMsg, KVOpEvent

    for key in keys:
        rig.core.on_pushed(
            BatchedKVOperationMsg(
                instance_id="a", worker_id=0, location="cpu", operations=[KVOpEvent(op_type="admit", key=key)]
            )
        )
    assert held(rig) == 12
    rig.core.on_pushed(KVEvictMsg(instance_id="a", worker_id=0, key=keys[2], location="cpu", seq_num=9))
    assert held(rig) == 8
    rig.core.on_pushed(KVAdmitMsg(instance_id="a", worker_id=0, key=keys[2], location="cpu", seq_num=3))
    assert held(rig) == 12
    assert rig.heartbeat() == []


def test_a_sync_that_stands_still_is_given_up_and_asked_for_again(rig, keys):
    rig.start_sync("s", 2)
    rig.clock.advance(61)
    rig.core.tick()
    assert rig.heartbeat() == ["sync_failed_retry"]
    assert rig.status("s").can_exit_freeze


def test_an_unanswered_command_is_repeated_after_a_while(rig):
    assert rig.heartbeat() == ["worker_re_registered"]
    rig.clock.advance(30)
    assert rig.heartbeat() == []
    rig.clock.advance(31)
    assert rig.heartbeat() == ["worker_re_registered"]


def test_sync_of_an_unknown_worker_is_refused_in_words(rig):
    answer = rig.start_sync("s", 1)
    assert not answer.accepted
    assert "not registered" in answer.error_msg
    assert rig.status("s").can_exit_freeze


def test_too_many_locations_are_refused(rig, keys):
    for number in range(64):
        rig.admit([number], location=f"l{number}")
    with pytest.raises(Exception, match="more than 64 locations"):
        rig.admit([1], location="one more")
    assert not rig.start_sync("s", 1, "another").accepted
