"""Planning calls, taking answers, and what /check_finish says."""

import pytest

from lmcache_kit.errors import (
    ConflictError,
    InvalidRequestError,
    LMCacheKitError,
    NotFoundError,
    UnavailableError,
    UnknownNameError,
)
from lmcache_kit.messages import (
    CheckFinishWorkerMsg,
    CheckFinishWorkerRetMsg,
    ClearWorkerRetMsg,
    CompressWorkerRetMsg,
    DeRegisterMsg,
    ErrorMsg,
    HealthWorkerRetMsg,
    JobInfo,
    PinWorkerRetMsg,
    UnpinWorkerRetMsg,
)


@pytest.fixture
def core(rig):
    rig.register(methods=["zstd"], locations=["cpu", "disk"])
    return rig.core


def done(tokens=8, before=100, after=50, **more):
    return JobInfo(
        status="done",
        num_tokens=tokens,
        tokens_done=tokens,
        bytes_before=before,
        bytes_after=after,
        ratio=before / after,
        seconds=0.5,
        **more,
    )


def test_a_job_is_followed_to_its_end(core):
    plan = core.plan.compress("a", "zstd", "cpu", [1, 2])
    (call,) = plan.calls
    assert call.message.worker_event_id == f"{plan.event_id}:0"
    running = JobInfo(status="running", num_tokens=8)
    assert core.settle(plan, [CompressWorkerRetMsg(num_tokens=8, job=running)]) == 8
    poll = core.check_finish(plan.event_id)
    assert isinstance(poll.calls[0].message, CheckFinishWorkerMsg)
    assert poll.calls[0].message.worker_event_id == f"{plan.event_id}:0"
    assert (
        core.settle_check_finish(poll, [CheckFinishWorkerRetMsg(status="running", job=running)])["status"] == "running"
    )
    poll = core.check_finish(plan.event_id)
    report = core.settle_check_finish(poll, [CheckFinishWorkerRetMsg(status="done", job=done())])
    assert report["status"] == "done"
    assert (report["bytes_before"], report["bytes_after"], report["ratio"]) == (100, 50, 2.0)
    assert report["workers"]["0"]["seconds"] == 0.5
    assert core.check_finish(plan.event_id).calls == (), "a finished job is asked for no more"


def test_a_worker_without_jobs_is_done_when_it_answered(core):
    plan = core.plan.compress("a", "zstd", "cpu", [1])
    core.settle(plan, [CompressWorkerRetMsg(num_tokens=3)])
    poll = core.check_finish(plan.event_id)
    assert poll.calls == ()
    report = core.settle_check_finish(poll, [])
    assert (report["status"], report["num_tokens"], report["tokens_done"]) == ("done", 3, 3)
    assert (report["ratio"], report["device"], report["bytes_before"]) == (None, None, 0)


def test_ranks_share_tokens_and_add_bytes(rig):
    rig.register(worker=0)
    rig.register(worker=1)
    core = rig.core
    plan = core.plan.compress("a", "zstd", "cpu", None)
    assert len(plan.calls) == 2
    answers = [
        CompressWorkerRetMsg(num_tokens=8, job=done()),
        CompressWorkerRetMsg(num_tokens=8, job=JobInfo(status="running", num_tokens=8, tokens_done=4, bytes_before=60)),
    ]
    assert core.settle(plan, answers) == 8
    poll = core.check_finish(plan.event_id)
    assert [call.worker.worker_id for call in poll.calls] == [1]
    failed = JobInfo(status="failed", num_tokens=8, error="disk full")
    report = core.settle_check_finish(poll, [CheckFinishWorkerRetMsg(status="failed", job=failed)])
    assert report["status"] == "failed"
    assert report["error"] == "worker 1: disk full"
    assert report["workers"]["0"]["status"] == "done"


def test_a_refusal_passes_on_the_workers_words_and_status(core):
    plan = core.plan.compress("a", "zstd", "cpu", [1])
    with pytest.raises(ConflictError, match="worker a/0: it is busy") as caught:
        core.settle(plan, [ErrorMsg(error="it is busy", status=409, hint="wait")])
    assert caught.value.hint == "wait"
    report = core.settle_check_finish(core.check_finish(plan.event_id), [])
    assert (report["status"], report["error"]) == ("failed", "it is busy")


@pytest.mark.parametrize(("given", "seen"), [(418, 400), (507, 507), (599, 500), (200, 500), (-1, 500), (10**9, 500)])
def test_strange_statuses_become_errors_all_the_same(core, given, seen):
    plan = core.plan.compress("a", "zstd", "cpu", [1])
    with pytest.raises(LMCacheKitError) as caught:
        core.settle(plan, [ErrorMsg(error="x", status=given)])
    assert caught.value.status == seen
    assert LMCacheKitError("fresh").status == 500, "the class must keep its own status"


def test_a_worker_that_did_not_answer_may_have_begun_and_is_asked_later(core):
    plan = core.plan.compress("a", "zstd", "cpu", [1])
    with pytest.raises(UnavailableError):
        core.settle(plan, [UnavailableError("no answer")])
    poll = core.check_finish(plan.event_id)
    assert len(poll.calls) == 1
    report = core.settle_check_finish(poll, [CheckFinishWorkerRetMsg(status="done", job=done())])
    assert (report["status"], report["error"]) == ("done", None)


def test_a_worker_that_did_not_answer_and_knows_nothing_failed(core):
    plan = core.plan.compress("a", "zstd", "cpu", [1])
    with pytest.raises(UnavailableError):
        core.settle(plan, [UnavailableError("no answer")])
    poll = core.check_finish(plan.event_id)
    report = core.settle_check_finish(poll, [ErrorMsg(error="unknown job", status=404)])
    assert (report["status"], report["error"]) == ("failed", "no answer")
    assert core.check_finish(plan.event_id).calls == ()


def test_a_job_that_its_worker_forgot_has_failed(core):
    plan = core.plan.compress("a", "zstd", "cpu", [1])
    core.settle(plan, [CompressWorkerRetMsg(num_tokens=8, job=JobInfo(status="running", num_tokens=8))])
    poll = core.check_finish(plan.event_id)
    report = core.settle_check_finish(poll, [ErrorMsg(error="unknown job", status=404)])
    assert report["status"] == "failed"
    assert "does not know this job any more: unknown job" in report["error"]


def test_a_silent_worker_is_no_answer_about_its_job(core):
    plan = core.plan.compress("a", "zstd", "cpu", [1])
    core.settle(plan, [CompressWorkerRetMsg(num_tokens=8, job=JobInfo(status="running", num_tokens=8))])
    with pytest.raises(UnavailableError):
        core.settle_check_finish(core.check_finish(plan.event_id), [UnavailableError("no answer")])


def test_a_worker_that_left_leaves_its_jobs_failed(rig, core):
    plan = core.plan.compress("a", "zstd", "cpu", [1])
    core.settle(plan, [CompressWorkerRetMsg(num_tokens=8, job=JobInfo(status="running", num_tokens=8))])
    core.on_pushed(DeRegisterMsg(instance_id="a", worker_id=0, ip="10.0.0.1", port=8001))
    report = core.settle_check_finish(core.check_finish(plan.event_id), [])
    assert report["status"] == "failed"
    assert "a/0 left" in report["error"]


def test_unknown_names_are_refused_before_any_worker_is_asked(core):
    for call in (
        lambda: core.plan.compress("b", "zstd", "cpu", [1]),
        lambda: core.plan.compress("a", "zsdt", "cpu", [1]),
        lambda: core.plan.compress("a", "zstd", "cup", [1]),
        lambda: core.plan.pin("a", "gpu", [1], "", None),
        lambda: core.plan.unpin("a", "gpu", [1], ""),
        lambda: core.plan.clear("a", "gpu"),
        lambda: core.plan.move(("a", "cpu"), ("b", "cpu"), [1], copy=True),
        lambda: core.plan.move(("a", "gpu"), ("a", "cpu"), [1], copy=True),
        lambda: core.plan.move(("a", "cpu"), ("a", "gpu"), [1], copy=True),
        lambda: core.plan.health("b"),
    ):
        with pytest.raises(UnknownNameError) as caught:
            call()
        assert caught.value.status == 404
        assert "known:" in caught.value.hint
    assert len(core.operations) == 0


def test_a_worker_that_announced_nothing_decides_itself(rig):
    rig.register()
    plan = rig.core.plan.compress("a", "cachegen", "anywhere", [1])
    assert plan.calls[0].message.method == "cachegen"


def test_no_tokens_are_refused(core):
    for call in (
        lambda: core.plan.compress("a", "zstd", "cpu", []),
        lambda: core.plan.decompress("a", "zstd", "cpu", []),
        lambda: core.plan.pin("a", "cpu", [], "", None),
        lambda: core.plan.unpin("a", "cpu", [], ""),
        lambda: core.plan.move(("a", "cpu"), ("a", "disk"), [], copy=True),
    ):
        with pytest.raises(InvalidRequestError, match="tokens is empty"):
            call()


@pytest.mark.parametrize("ttl", [0.0, -1.0, float("nan")])
def test_a_pin_must_last(core, ttl):
    with pytest.raises(InvalidRequestError, match="ttl"):
        core.plan.pin("a", "cpu", [1], "", ttl)


def test_zero_tokens_are_no_success(rig):
    rig.register()
    rig.admit([1], location="cpu")
    core = rig.core
    plan = core.plan.pin("a", "cpu", [1], "", None)
    with pytest.raises(NotFoundError, match="nothing to pin in cpu"):
        core.settle(plan, [PinWorkerRetMsg(num_tokens=0)])
    plan = core.plan.pin("a", "cup", [1], "", None)
    with pytest.raises(UnknownNameError, match="unknown location") as caught:
        core.settle(plan, [PinWorkerRetMsg(num_tokens=0)])
    assert "cpu" in caught.value.hint
    plan = core.plan.clear("a", "cpu")
    assert core.settle(plan, [ClearWorkerRetMsg(num_tokens=0)]) == 0
    plan = core.plan.clear("a", "cup")
    with pytest.raises(UnknownNameError):
        core.settle(plan, [ClearWorkerRetMsg(num_tokens=0)])
    plan = core.plan.unpin("a", "cpu", [1], "")
    assert core.settle(plan, [UnpinWorkerRetMsg(num_tokens=0)]) == 0


def test_a_job_about_nothing_new_is_a_success_that_says_so(core):
    plan = core.plan.compress("a", "zstd", "cpu", [1])
    note = JobInfo(status="done", note="already zstd")
    assert core.settle(plan, [CompressWorkerRetMsg(num_tokens=0, job=note)]) == 0
    assert core.settle_check_finish(core.check_finish(plan.event_id), [])["note"] == "already zstd"


def test_an_answer_of_the_wrong_kind_is_an_error(core):
    plan = core.plan.compress("a", "zstd", "cpu", [1])
    with pytest.raises(LMCacheKitError, match="HealthWorkerRetMsg"):
        core.settle(plan, [HealthWorkerRetMsg(error_code=0)])


def test_dead_workers_are_not_called(rig, core):
    rig.heartbeat(methods=["zstd"], locations=["cpu", "disk"])
    rig.clock.advance(100)
    core.tick()
    for call in (lambda: core.plan.clear("a", "cpu"), lambda: core.plan.health("a")):
        with pytest.raises(UnavailableError, match="missed its heartbeats"):
            call()


def test_move_pairs_workers_and_needs_a_peer_url(rig):
    core = rig.core
    rig.register("a", 0, peer_init_url="a:1")
    rig.register("a", 1, peer_init_url="a:2")
    rig.register("b", 0, peer_init_url="b:1")
    with pytest.raises(ConflictError, match="has 2 workers"):
        core.plan.move(("a", "cpu"), ("b", "cpu"), None, copy=False)
    rig.register("b", 1)
    with pytest.raises(ConflictError, match="b/1 announced no peer URL"):
        core.plan.move(("a", "cpu"), ("b", "cpu"), None, copy=False)
    rig.register("b", 1, peer_init_url="b:2")
    plan = core.plan.move(("a", "cpu"), ("b", "disk"), [1], copy=True)
    assert [call.message.new_position for call in plan.calls] == [("b:1", "disk"), ("b:2", "disk")]
    assert all(call.message.copy for call in plan.calls)
    rig.register("b", 1, peer_init_url="b:2", chunk_size=77)
    with pytest.raises(ConflictError, match="name their chunks differently"):
        core.plan.move(("a", "cpu"), ("b", "disk"), [1], copy=True)


def test_move_within_one_instance_needs_no_peer_url(core):
    plan = core.plan.move(("a", "cpu"), ("a", "disk"), [1], copy=False)
    assert plan.calls[0].message.new_position == ("", "disk")
    with pytest.raises(InvalidRequestError, match="the same"):
        core.plan.move(("a", "cpu"), ("a", "cpu"), [1], copy=False)


def test_operations_are_kept_within_bounds_finished_ones_go_first(make_rig):
    rig = make_rig(max_operations=3)
    rig.register()
    core = rig.core
    running = core.plan.compress("a", "zstd", "cpu", [1])
    core.settle(running, [CompressWorkerRetMsg(num_tokens=1, job=JobInfo(status="running"))])
    ids = set()
    for _ in range(50):
        plan = core.plan.compress("a", "zstd", "cpu", [1])
        core.settle(plan, [CompressWorkerRetMsg(num_tokens=1)])
        ids.add(plan.event_id)
    assert len(ids) == 50
    assert len(core.operations) == 3
    assert core.check_finish(running.event_id).calls
    with pytest.raises(NotFoundError, match="unknown event"):
        core.check_finish("no such event")
    for _ in range(10):
        core.plan.clear("a", "cpu")
    assert len(core.operations) == 3
