"""One test base for all backends: a test module that names an ``OPERATION`` has its tests run over its backends."""

from __future__ import annotations

import pytest
from lmcache_kit_kernels import backends_of

# These compile for every new shape, so tests that draw shapes leave them out.
COMPILED_PER_SHAPE = {"xla", "pallas", "pallas_interpret"}


def pytest_generate_tests(metafunc):
    """Parametrise ``backend`` over all of the module's backends, ``other`` over all but the reference, and
    ``quick`` over those that take any shape without compiling."""
    operation = getattr(metafunc.module, "OPERATION", None)
    if operation is None:
        return
    names = backends_of(operation)
    choices = {
        "backend": names,
        "other": [name for name in names if name != "numpy"],
        "quick": [name for name in names if name not in COMPILED_PER_SHAPE],
    }
    for fixture, values in choices.items():
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, values)


def pytest_runtest_setup(item):
    params = getattr(item, "callspec", None)
    if params is not None and "pallas" in params.params.values():
        import jax

        if jax.default_backend() != "gpu":
            pytest.skip("compiled Pallas kernels need a GPU; pallas_interpret runs them here")
