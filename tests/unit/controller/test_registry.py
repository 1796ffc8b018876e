"""Joining, leaving, dying, coming back."""

import pytest

from lmcache_kit.errors import NotFoundError, UnknownNameError
from lmcache_kit.messages import DeRegisterMsg, ErrorMsg, RegisterMsg

TOKENS = list(range(8))


def held(rig, instance="a"):
    return rig.core.lookup(TOKENS).prefix.get(instance, 0)


def leave(rig, port=8001):
    rig.core.on_pushed(DeRegisterMsg(instance_id="a", worker_id=0, ip="10.0.0.1", port=port))


def test_registration_pushed_alone_is_enough(rig):
    rig.core.on_pushed(RegisterMsg(instance_id="a", worker_id=0, ip="h", port=1))
    rig.admit(rig.hashes(TOKENS))
    assert held(rig) == 8


def test_deregistration_removes_everything_of_the_worker(rig):
    rig.register()
    rig.admit(rig.hashes(TOKENS))
    leave(rig)
    assert held(rig) == 0
    assert rig.core.registry.instances == {}
    while rig.core.tick():
        pass
    assert rig.core.contents.index.masks == {}
    with pytest.raises(UnknownNameError, match="unknown instance 'a'"):
        rig.core.registry.workers("a")
    leave(rig)


def test_a_late_goodbye_of_an_earlier_life_is_left_out(rig):
    rig.register(port=1)
    rig.register(port=2)
    with pytest.raises(Exception, match="registered anew"):
        leave(rig, port=1)
    assert rig.core.registry.find("a", 0) is not None


def test_operations_of_strangers_are_left_out_and_lead_to_a_sync(rig):
    with pytest.raises(NotFoundError, match="not registered"):
        rig.admit([1])
    assert "a/0" in rig.core.explain([1], rig.core.lookup([1]))["hints"][1]
    rig.register()
    assert rig.heartbeat() == ["worker_re_registered"]


def test_a_fresh_worker_needs_no_sync(rig):
    rig.register()
    rig.admit([1, 2])
    assert rig.heartbeat() == []


def test_an_unknown_workers_heartbeat_registers_it_and_asks_for_a_sync(rig):
    assert rig.heartbeat("z", 3, port=77) == ["worker_re_registered"]
    assert rig.core.registry.find("z", 3).port == 77


def test_missed_heartbeats_drop_the_contents_and_a_heartbeat_heals(rig):
    rig.register()
    rig.heartbeat()
    rig.admit(rig.hashes(TOKENS))
    rig.clock.advance(59)
    rig.core.tick()
    assert held(rig) == 8
    rig.clock.advance(2)
    rig.core.tick()
    worker = rig.core.registry.find("a", 0)
    assert not worker.alive
    assert held(rig) == 0
    assert rig.core.counters.deaths == 1
    rig.core.tick()
    assert rig.core.counters.deaths == 1
    assert rig.heartbeat() == ["worker_was_dead"]
    assert worker.alive


def test_workers_that_never_send_heartbeats_do_not_die(rig):
    rig.register()
    rig.admit(rig.hashes(TOKENS))
    rig.clock.advance(10_000)
    rig.core.tick()
    assert held(rig) == 8


def test_slow_heartbeats_are_not_death(rig):
    rig.register()
    rig.heartbeat()
    rig.clock.advance(50)
    rig.heartbeat()
    rig.clock.advance(100)
    rig.core.tick()
    assert rig.core.registry.find("a", 0).alive


def test_no_timeout_means_never(make_rig):
    rig = make_rig(worker_timeout=None)
    rig.register()
    rig.heartbeat()
    rig.clock.advance(1e9)
    rig.core.tick()
    assert rig.core.registry.find("a", 0).alive


def test_registering_again_drops_the_contents_and_asks_for_a_sync(rig):
    rig.register()
    rig.admit(rig.hashes(TOKENS))
    before = rig.core.registry.find("a", 0).generation
    rig.register(port=9)
    assert held(rig) == 0
    worker = rig.core.registry.find("a", 0)
    assert (worker.port, worker.generation > before) == (9, True)
    assert rig.heartbeat(port=9) == ["worker_re_registered"]


def test_a_heartbeat_from_another_address_registers_anew(rig):
    rig.register()
    rig.admit(rig.hashes(TOKENS))
    assert rig.heartbeat(port=9) == ["worker_re_registered"]
    assert held(rig) == 0


def test_a_heartbeat_that_announces_nothing_takes_nothing_back(rig):
    rig.register(chunk_size=2)
    assert rig.heartbeat() == []
    assert rig.core.registry.find("a", 0).spec.chunk_size == 2
    assert rig.heartbeat(chunk_size=3) == ["worker_re_registered"]


@pytest.mark.parametrize("fields", [{"chunk_size": 0}, {"chunk_size": -5}, {"hash_algorithm": "md5"}])
def test_impossible_hash_settings_are_refused_and_cost_nothing(rig, fields):
    rig.register()
    rig.admit(rig.hashes(TOKENS))
    answer = rig.register(**fields)
    assert isinstance(answer, ErrorMsg)
    assert 400 <= answer.status < 500
    assert held(rig) == 8


def test_the_heartbeat_address_is_told(make_rig):
    rig = make_rig(heartbeat_address=lambda ip: f"{ip}:99")
    assert rig.register().extra_config == {"heartbeat_url": "10.0.0.1:99"}


def test_an_unknown_instance_names_the_known_ones(rig):
    rig.register("alpha")
    with pytest.raises(UnknownNameError, match="unknown instance 'alpah'") as caught:
        rig.core.registry.workers("alpah")
    assert "did you mean 'alpha'" in caught.value.hint
