"""Suites run in-process: outcomes, details, and nothing left behind."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache_kit.builtin.storage.memory import MemoryBackend
from lmcache_kit.contracts import Options, StorageBackend, StoragePlugin, SupportsBatch, SupportsHealth
from lmcache_kit.errors import ConfigError, LMCacheKitError, UnavailableError
from lmcache_kit.testing.effort import scaled
from lmcache_kit.testing.running import run_suite
from lmcache_kit.testing.suites.base import PluginTests, examples, is_offered, refusal


class Small(PluginTests):
    """A suite of every kind of outcome."""

    record_type = StoragePlugin
    contract = StorageBackend
    capabilities = frozenset({"persistent"})

    @pytest.fixture
    def subject(self, record, made_options):
        return record.factory(made_options, None)

    def test_it_notes_a_detail(self, record_property):
        record_property("detail", "as seen")

    @pytest.mark.capability("persistent")
    def test_what_only_some_declare(self):
        print("swallowed")

    @pytest.mark.ability.with_args(SupportsBatch)
    def test_what_only_some_offer(self):
        assert os.getcwd()

    @pytest.mark.ability.with_args(SupportsHealth)
    def test_what_others_offer(self, subject):
        assert subject.health() == {}

    def test_a_property_fails(self):
        @examples(100)
        @given(st.integers(0, 1000))
        def check(number):
            assert number < 700, f"{number} is too much"

        check()

    def test_a_comparison_fails(self):
        assert 1 + 1 == 3

    def test_it_raises(self):
        raise ZeroDivisionError("oops")

    def test_it_raises_one_of_ours(self):
        raise ConfigError("wrong", hint="do it right")

    @pytest.fixture
    def late(self):
        yield
        raise RuntimeError("while it was closed")

    def test_its_end_fails(self, late):
        pass


class Healthy(MemoryBackend):
    def health(self):
        return {}


def plugin(backend=Healthy, **facts):
    return StoragePlugin(name="x", summary="x", location="X", factory=lambda options, context: backend(), **facts)


@pytest.fixture(scope="module")
def run():
    return run_suite(Small, fixtures={"plugin": plugin()}, shrink=True)


def test_every_test_has_one_outcome_with_its_reason(run, capsys):
    found = {result.check: (result.outcome, result.detail) for result in run.results}
    assert found["test_it_notes_a_detail"] == ("passed", "as seen")
    assert found["test_what_only_some_declare"] == (
        "skipped",
        "not declared: x does not have the capability 'persistent'",
    )
    outcome, reason = found["test_what_only_some_offer"]
    assert outcome == "skipped"
    assert reason == "not offered: Healthy has no get_many (SupportsBatch is optional)"
    assert found["test_a_comparison_fails"] == ("failed", "assert (1 + 1) == 3")
    assert found["test_it_raises"] == ("failed", "ZeroDivisionError: oops")
    assert found["test_it_raises_one_of_ours"] == ("failed", "ConfigError: wrong (do it right)")
    assert found["test_its_end_fails"] == ("failed", "RuntimeError: while it was closed")
    assert found["test_the_factory_makes_what_its_kind_promises"] == ("passed", "Healthy")
    assert len(found) == 12
    assert capsys.readouterr().out == ""


def test_a_failing_property_shows_its_smallest_example(run):
    (result,) = (result for result in run.results if result.check == "test_a_property_fails")
    assert result.outcome == "failed"
    assert result.detail.startswith("700 is too much")
    assert "number=700" in result.detail
    assert "\n" not in result.detail


def test_a_quick_run_shows_the_first_example_that_fails():
    (result,) = run_suite(Small, fixtures={"plugin": plugin()}, only=["test_a_property_fails"]).results
    assert result.outcome == "failed"
    found = int(re.search(r"number=(\d+)", result.detail)[1])
    assert found >= 700


def test_abilities_are_those_that_were_tested(run):
    assert run.abilities == ["SupportsHealth"]


def test_some_tests_alone():
    run = run_suite(Small, fixtures={"plugin": plugin()}, only=["test_it_raises"])
    assert [result.check for result in run.results] == ["test_it_raises"]


def test_the_environment_is_as_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTEST_ADDOPTS", "--no-such-option")
    before = dict(os.environ)
    modules = {name for name in sys.modules if name.startswith("test_")}
    run = run_suite(Small, fixtures={"plugin": plugin()}, only=["test_a_property_fails"])
    assert run.results[0].outcome == "failed"
    assert dict(os.environ) == before
    assert list(tmp_path.iterdir()) == []
    assert {name for name in sys.modules if name.startswith("test_")} == modules


def test_a_suite_without_a_plugin_says_what_is_missing():
    run = run_suite(Small, only=["test_the_record_is_well_formed"])
    assert run.results[0].outcome == "failed"
    assert "needs a fixture `plugin`" in run.results[0].detail


class Broken(Small):
    def test_not_collectable(self, no_such_fixture):
        pass


def test_a_missing_fixture_is_a_line():
    run = run_suite(Broken, fixtures={"plugin": plugin()}, only=["test_not_collectable"])
    assert run.results[0].outcome == "failed"
    assert "no_such_fixture" in run.results[0].detail


def test_a_record_of_another_kind_is_named():
    run = run_suite(Small, fixtures={"plugin": "no_such_plugin"}, only=["test_it_notes_a_detail"])
    assert run.results[0].outcome == "passed"  # it asks for no record
    run = run_suite(Small, fixtures={"plugin": "no_such_plugin"}, only=["test_the_record_is_well_formed"])
    assert run.results[0].detail.startswith("UnknownNameError: unknown storage plugin 'no_such_plugin'")


class NeedsUrl(Options, frozen=True):
    url: str


def test_options_without_a_default_are_asked_for():
    for options, outcome in (({}, "skipped"), ({"url": "here"}, "passed"), ({"url": 5}, "failed")):
        run = run_suite(
            Small,
            fixtures={"plugin": plugin(options=NeedsUrl), "options": options},
            only=["test_the_factory_makes_what_its_kind_promises"],
        )
        assert run.results[0].outcome == outcome


def test_an_undeclared_capability_is_found():
    record = plugin(capabilities=frozenset({"persistant"}))
    run = run_suite(Small, fixtures={"plugin": record}, only=["test_declared_capabilities_are_known"])
    assert run.results[0].outcome == "failed"
    assert "no capability 'persistant': the contract knows persistent" in run.results[0].detail


def test_effort_is_a_share_of_the_profile():
    usual = hypothesis.settings().max_examples
    assert scaled(50) == round(50 * usual / 100)
    assert scaled(0) == 1
    many = hypothesis.settings(max_examples=1000)
    hypothesis.settings.register_profile("ten times", many)
    name = hypothesis.settings.get_current_profile_name()
    hypothesis.settings.load_profile("ten times")
    try:
        assert scaled(30) == 300
        assert examples(30).max_examples == 300
    finally:
        hypothesis.settings.load_profile(name)


def test_an_ability_can_be_taken_back():
    class Without(Healthy):
        health = None

    assert is_offered(Healthy(), SupportsHealth)
    assert not is_offered(Without(), SupportsHealth)


def test_a_refusal_is_the_error_that_was_asked_for():
    def refuse():
        raise UnavailableError("gone")

    assert refusal(refuse, UnavailableError).message == "gone"
    assert refusal(refuse, LMCacheKitError).message == "gone"
    with pytest.raises(AssertionError, match="UnavailableError instead of ConfigError: gone"):
        refusal(refuse, ConfigError)
    with pytest.raises(AssertionError, match="no ConfigError was raised; the answer is 5"):
        refusal(lambda: 5, ConfigError)


def test_the_folder_of_a_run_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run_suite(Small, fixtures={"plugin": plugin()}, only=["test_it_notes_a_detail"])
    assert list(Path(tmp_path).iterdir()) == []
