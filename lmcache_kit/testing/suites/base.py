"""What all suites share: the fixtures, how a plugin is made, what is skipped, and how many examples are tried."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, settings

from lmcache_kit.contracts.records import PLUGIN_KINDS, Options, Plugin
from lmcache_kit.errors import ConfigError, LMCacheKitError, NotFoundError, UnavailableError
from lmcache_kit.plugins import PluginRegistry, registry
from lmcache_kit.testing.effort import EXAMPLES, SEARCH_ONLY, SHRINKS, scaled

__all__ = ["PluginTests", "examples", "is_offered", "made", "refusal", "skip_unless_offered"]

T = TypeVar("T")

_NAME = re.compile(r"[a-z0-9_]+")


def examples(number: int, **more: Any) -> settings:
    """Settings of a property inside a suite's test, as its decorator, or of a state machine.

    Args:
        number: examples under hypothesis's default profile; more or fewer in proportion under others.
        more: further settings of hypothesis, e.g. ``stateful_step_count``.
    """
    if EXAMPLES.get() is not None:
        more.setdefault("database", None)
    if not SHRINKS.get():
        more.setdefault("phases", SEARCH_ONLY)
    return settings(
        max_examples=scaled(number),
        report_multiple_bugs=False,
        deadline=None,
        # Plugins may be slow, and the KV that they are given is large beside hypothesis's usual examples.
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
        **more,
    )


def made(make: Callable[[], T]) -> T:
    """What ``make`` makes; the test is skipped, with the reason, where the plugin says that it cannot be used here."""
    try:
        return make()
    except (UnavailableError, ConfigError, NotFoundError) as error:
        pytest.skip(f"it cannot be used here: {error.detail}")


def is_offered(subject: object, protocol: type) -> bool:
    """Whether an object has an optional ability; an attribute that is None takes one back."""
    members = [name for name in vars(protocol) if not name.startswith("_")]
    return all(callable(getattr(subject, name, None)) for name in members)


def skip_unless_offered(subject: object, protocol: type) -> None:
    """Skip the test when ``subject`` does not have the optional ability ``protocol``."""
    if not is_offered(subject, protocol):
        members = ", ".join(name for name in vars(protocol) if not name.startswith("_"))
        pytest.skip(f"not offered: {type(subject).__name__} has no {members} ({protocol.__name__} is optional)")


def refusal(call: Callable[[], object], *kinds: type[LMCacheKitError]) -> LMCacheKitError:
    """The error of ``kinds`` that ``call`` must raise, with a message; whatever else happens fails the test."""
    names = " or ".join(kind.__name__ for kind in kinds)
    try:
        answer = call()
    except kinds as error:
        refused = error
    except Exception as error:
        raise AssertionError(f"{type(error).__name__} instead of {names}: {error}") from error
    else:
        raise AssertionError(f"no {names} was raised; the answer is {answer!r:.200}")
    assert refused.message.strip(), f"{type(refused).__name__} without a message"
    return refused


class PluginTests:
    """Base of the suites; not collected by itself.

    A subclass for one kind sets ``record_type`` and ``capabilities``, overrides :meth:`subject`, and marks what only
    some plugins do with ``@pytest.mark.capability("lossless")`` or ``@pytest.mark.ability.with_args(SupportsBatch)``.

    Fixtures that an author gives: ``plugin``, the record or the name of an installed plugin, and, where it is needed,
    ``options``, a mapping of plain values.
    """

    record_type: ClassVar[type[Plugin]]
    """The record of this kind."""

    capabilities: ClassVar[frozenset[str]] = frozenset()
    """Every capability that the contract knows."""

    contract: ClassVar[type]
    """What the factory makes."""

    @pytest.fixture
    def plugin(self) -> Plugin | str:
        """The plugin under test: its record, or the name of an installed one. Every test class gives its own."""
        pytest.fail(f"{type(self).__name__} needs a fixture `plugin` that returns a record or the name of a plugin")

    @pytest.fixture
    def options(self) -> Mapping[str, Any]:
        """Options of the plugin as plain values; the defaults where nothing is given."""
        return {}

    @pytest.fixture
    def record(self, plugin: Plugin | str) -> Any:
        """The record under test."""
        record = registry().get(self.record_type, plugin) if isinstance(plugin, str) else plugin
        assert isinstance(record, self.record_type), (
            f"{type(self).__name__} tests {self.record_type.kind} plugins; `plugin` is a {type(record).__name__}"
        )
        return record

    @pytest.fixture
    def made_options(self, record: Plugin, options: Mapping[str, Any]) -> Options:
        """The options as the factory takes them; skips plugins whose required options are not given."""
        missing = [
            field.encode_name
            for field in msgspec.structs.fields(record.options)
            if field.required and field.encode_name not in options
        ]
        if missing:
            pytest.skip(f"needs options without a default: {', '.join(missing)}")
        return PluginRegistry.options(record, options)

    @pytest.fixture
    def subject(self, record: Any, made_options: Options) -> Any:
        """One made object; skips where the plugin cannot be used."""
        return made(lambda: record.factory(made_options))

    @pytest.fixture(autouse=True)
    def _only_what_is_declared(self, request: pytest.FixtureRequest) -> None:
        for marker in request.node.iter_markers("capability"):
            (wanted,) = marker.args
            record = request.getfixturevalue("record")
            if wanted not in record.capabilities:
                pytest.skip(f"not declared: {record.name} does not have the capability {wanted!r}")
        for marker in request.node.iter_markers("ability"):
            (protocol,) = marker.args
            skip_unless_offered(request.getfixturevalue("subject"), protocol)

    def test_the_record_is_well_formed(self, record: Plugin, record_property: Callable[[str, object], None]) -> None:
        assert _NAME.fullmatch(record.name), f"the name {record.name!r} has other characters than a-z 0-9 _"
        lines = [line for line in record.summary.splitlines() if line.strip()]
        assert lines == [record.summary], f"the summary is not one line: {record.summary!r}"
        assert isinstance(record.options, type), f"its options are {record.options!r}, not a class"
        assert issubclass(record.options, Options), "its options are not a subclass of Options"
        assert isinstance(record, PLUGIN_KINDS[record.kind])
        msgspec.json.schema(record.options)
        fields = msgspec.structs.fields(record.options)
        record_property("detail", f"options: {', '.join(field.encode_name for field in fields) or 'none'}")

    def test_declared_capabilities_are_known(self, record: Plugin) -> None:
        unknown = sorted(record.capabilities - self.capabilities)
        assert not unknown, (
            f"{record.kind} plugins have no capability {', '.join(map(repr, unknown))}: "
            f"the contract knows {', '.join(sorted(self.capabilities)) or 'none'}"
        )

    def test_the_factory_makes_what_its_kind_promises(
        self, subject: Any, record_property: Callable[[str, object], None]
    ) -> None:
        assert isinstance(subject, self.contract), (
            f"the factory made a {type(subject).__name__}, not a {self.contract.__name__}"
        )
        record_property("detail", type(subject).__name__)
