"""Fixtures that every part of the suite shares."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.servers import postgres_server

# How long an example takes says nothing on a machine that is busy.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

__all__ = ["anyio_backend", "postgres_server"]


@pytest.fixture
def anyio_backend() -> str:
    """The daemon runs on asyncio; so do its tests."""
    return "asyncio"
