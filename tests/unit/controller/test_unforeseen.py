"""What should not happen is counted and answered, and the controller goes on."""

from __future__ import annotations

import logging

import pytest

from lmcache_kit.errors import ConflictError, InvalidRequestError, UnavailableError
from lmcache_kit.messages import (
    BatchedKVOperationMsg,
    CheckFinishWorkerRetMsg,
    ClearWorkerRetMsg,
    CompressWorkerRetMsg,
    DeRegisterMsg,
    ErrorMsg,
    FullSyncEndMsg,
    HealthWorkerRetMsg,
    HeartbeatMsg,
    JobInfo,
    KVOpEvent,
    RegisterMsg,
    decode_worker_reply,
    encode,
)

WORDS = {"instance_id": "a", "worker_id": 0, "ip": "10.0.0.1", "port": 8001}


def broken(*args, **more):
    raise ZeroDivisionError("a bug")


def test_a_bug_met_by_one_message_does_not_stop_the_socket(rig, monkeypatch, caplog):
    rig.register()
    with monkeypatch.context() as patched:
        patched.setattr(rig.core.contents, "apply", broken)
        rig.core.receive_pushed(encode(rig.operate("admit", [1])))
    assert rig.core.counters.rejected["BatchedKVOperationMsg"] == 1
    assert any(record.levelno == logging.ERROR for record in caplog.records), "with its traceback"
    rig.core.receive_pushed(encode(rig.operate("admit", [2])))
    assert rig.core.contents.key_counts(rig.core.registry.find("a", 0)) == {"cpu": 1}


def test_a_bug_met_by_a_request_is_an_answer_that_names_the_message(rig, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(rig.core.registry, "add", broken)
        answer = decode_worker_reply(rig.core.receive_request(encode(RegisterMsg(**WORDS))))
    assert isinstance(answer, ErrorMsg)
    assert "RegisterMsg: ZeroDivisionError" in answer.error
    assert rig.core.counters.rejected["RegisterMsg"] == 1


def test_a_heartbeat_may_come_on_the_pull_socket(rig):
    rig.core.on_pushed(HeartbeatMsg(**WORDS))
    worker = rig.core.registry.find("a", 0)
    assert worker.heartbeat_at is not None
    assert worker.sync_reason == "worker_re_registered"


def test_a_message_without_operations_changes_nothing(rig):
    rig.register()
    rig.core.on_pushed(BatchedKVOperationMsg(instance_id="a", worker_id=0, location="cpu", operations=[]))
    worker = rig.core.registry.find("a", 0)
    assert (worker.seqs, worker.sync_reason) == ({}, None)


def test_the_end_of_a_sync_that_nobody_began_is_refused(rig):
    rig.register()
    with pytest.raises(ConflictError, match="ends a sync that is not running"):
        rig.core.on_pushed(
            FullSyncEndMsg(instance_id="a", worker_id=0, location="cpu", sync_id="s", actual_total_keys=0)
        )


def test_peers_are_nobody_for_a_worker_that_is_none(rig):
    from lmcache_kit.messages import BatchedP2PLookupMsg

    answer = rig.core.on_request(BatchedP2PLookupMsg(instance_id="a", worker_id=0, hashes=[1]))
    assert answer.layout_info == [("", "", 0, "")]


# --- plans and their answers -----------------------------------------------------------------------------------------


def test_a_move_onto_itself_is_refused(rig):
    rig.register()
    with pytest.raises(InvalidRequestError, match="are the same: a/cpu"):
        rig.core.plan.move(("a", "cpu"), ("a", "cpu"), None, copy=True)


def test_answers_that_make_no_sense_are_failures_that_say_so(rig):
    rig.register()
    plan = rig.core.plan.compress("a", "zstd", "cpu", None)
    rig.core.settle(plan, [CompressWorkerRetMsg(num_tokens=4, job=JobInfo(status="running", num_tokens=4))])
    poll = rig.core.check_finish(plan.event_id)
    report = rig.core.settle_check_finish(poll, [HealthWorkerRetMsg(error_code=0)])
    assert report["status"] == "failed"
    assert "HealthWorkerRetMsg" in report["error"]


@pytest.mark.parametrize(
    ("said", "status"),
    [("failed", "failed"), ("error", "failed"), ("queued", "running"), ("running", "running"), ("done", "done")],
)
def test_a_worker_that_tells_only_its_state_is_believed(rig, said, status):
    rig.register()
    plan = rig.core.plan.compress("a", "zstd", "cpu", None)
    rig.core.settle(plan, [CompressWorkerRetMsg(num_tokens=4, job=JobInfo(status="running", num_tokens=4))])
    poll = rig.core.check_finish(plan.event_id)
    report = rig.core.settle_check_finish(poll, [CheckFinishWorkerRetMsg(status=said)])
    assert report["status"] == status
    assert report["num_tokens"] == 4
    assert (report["error"] is not None) == (status == "failed")


def test_a_plan_without_an_operation_cannot_be_settled(rig):
    rig.register()
    with pytest.raises(TypeError, match="belongs to no operation"):
        rig.core.settle(rig.core.plan.health("a"), [])


def test_one_silent_worker_of_two_is_told_only_while_it_matters(rig):
    rig.register(worker=0)
    rig.register(worker=1)
    plan = rig.core.plan.clear("a", "cpu")
    with pytest.raises(UnavailableError, match="gone"):
        rig.core.settle(plan, [ClearWorkerRetMsg(num_tokens=1), UnavailableError("gone")])
    poll = rig.core.check_finish(plan.event_id)
    assert len(poll.calls) == 1
    report = rig.core.settle_check_finish(poll, [UnavailableError("still gone")])
    assert (report["status"], report["error"]) == ("failed", "worker 1: gone")
    assert report["workers"]["0"]["status"] == "done"


def test_a_worker_dead_for_now_is_asked_again_when_it_is_back(rig):
    rig.register()
    rig.heartbeat()
    plan = rig.core.plan.compress("a", "zstd", "cpu", None)
    rig.core.settle(plan, [CompressWorkerRetMsg(num_tokens=4, job=JobInfo(status="running", num_tokens=4))])
    rig.clock.advance(1000)
    rig.core.tick()
    report = rig.core.settle_check_finish(rig.core.check_finish(plan.event_id), [])
    assert report["status"] == "failed"
    assert "missed its heartbeats" in report["error"]
    rig.heartbeat()
    poll = rig.core.check_finish(plan.event_id)
    done = JobInfo(status="done", num_tokens=4, tokens_done=4)
    assert rig.core.settle_check_finish(poll, [CheckFinishWorkerRetMsg(status="done", job=done)])["status"] == "done"


def test_more_workers_than_can_be_are_refused(rig, monkeypatch):
    monkeypatch.setattr("lmcache_kit.controller.registry.MAX_WORKERS", 1)
    rig.register("a", 0)
    answer = rig.register("a", 1)
    assert isinstance(answer, ErrorMsg)
    assert "already knows 1 workers" in answer.error
    assert not isinstance(rig.register("a", 0), ErrorMsg), "one that is known may come back"
    rig.core.on_pushed(DeRegisterMsg(**WORDS))
    assert not isinstance(rig.register("a", 1), ErrorMsg)


def test_single_operations_of_old_workers_count_too(rig):
    """One operation whose number repeats the last is left out; one with number 0 after 0 is of a worker without any."""
    rig.register()
    for key in (1, 2, 3):
        rig.core.on_pushed(
            BatchedKVOperationMsg(
                instance_id="a",
                worker_id=0,
                location="cpu",
                operations=[KVOpEvent(op_type="admit", key=key, seq_num=0)],
            )
        )
    assert rig.core.contents.key_counts(rig.core.registry.find("a", 0)) == {"cpu": 3}
