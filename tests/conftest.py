"""Fixtures that every part of the suite shares."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from tests.servers import postgres_server

# How long an example takes says nothing on a machine that is busy. The ordinary run looks at the
# same examples each time: what fails is what was changed. Wide searches draw others each time, and
# so does ``--hypothesis-profile=wide``.
settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "wide", parent=settings.get_profile("suite"), derandomize=False, max_examples=1_000
)
settings.load_profile("suite")

__all__ = ["anyio_backend", "postgres_server"]


@pytest.fixture
def anyio_backend() -> str:
    """The daemon runs on asyncio; so do its tests."""
    return "asyncio"
