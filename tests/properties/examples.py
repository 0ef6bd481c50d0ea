"""How many examples a property is tried on: few in the test suite, many in `make properties`."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

LONG = os.environ.get("PROPERTIES") == "long"

examples = settings(
    max_examples=1000 if LONG else 25,
    deadline=None,
    derandomize=not LONG,
    # fixtures of a module are read-only here
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[p for p in Phase if p is not Phase.explain],
    database=None,
)
