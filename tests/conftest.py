"""Fixtures that every part of the suite shares."""

from __future__ import annotations

import pytest

from tests.servers import postgres_server

__all__ = ["anyio_backend", "postgres_server"]


@pytest.fixture
def anyio_backend() -> str:
    """The daemon runs on asyncio; so do its tests."""
    return "asyncio"
