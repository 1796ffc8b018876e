"""Every hook is documented by an example that runs, and the facade knows every hook."""

from __future__ import annotations

import inspect
import textwrap

import pytest

from lmcache_kit import contracts, hookspecs, plugins
from lmcache_kit.contracts import PLUGIN_KINDS

HOOKS = {name: spec for name, spec in vars(hookspecs).items() if name.startswith("lmcache_kit_")}


def test_the_facade_knows_every_hook_and_every_kind() -> None:
    assert set(plugins._HOOK_OF_KIND) == set(PLUGIN_KINDS)
    assert set(plugins._HOOK_OF_KIND.values()) == set(HOOKS)


@pytest.mark.parametrize(("kind", "hook"), plugins._HOOK_OF_KIND.items())
def test_the_example_of_a_hook_runs(kind: str, hook: str) -> None:
    doc = inspect.getdoc(HOOKS[hook])
    assert doc is not None
    code = textwrap.dedent(doc.split(".. code-block:: python\n", 1)[1])
    namespace = {**vars(contracts), "hookimpl": hookspecs.hookimpl}
    exec(code, namespace)
    records = list(namespace[hook]())
    assert [type(record) for record in records] == [PLUGIN_KINDS[kind]]
    assert records[0].summary
