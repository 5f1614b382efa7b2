from __future__ import annotations

from collections.abc import Callable

import pytest
from fuzzing import Fuzz, seconds_each


@pytest.fixture
def fuzz(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Fuzz:
    """Tries damaged input for this test's share of the time that all tests with this fixture have."""
    cases = sum("fuzz" in getattr(item, "fixturenames", ()) for item in request.session.items)
    return Fuzz(request.node.name, seconds_each(cases), record_property)
