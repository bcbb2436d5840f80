"""The reference model passes the suite that it is the model of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from catalog.clock import Clock
from catalog.conformance import *  # noqa: F403 - the suite is collected from here
from catalog.conformance import Store
from catalog.memory import MemoryCatalog, MemoryStore
from catalog.port import Catalog


class InMemory:
    """Handles on one ``MemoryStore`` stand for processes."""

    def __init__(self) -> None:
        self._rows = MemoryStore()

    @asynccontextmanager
    async def open(self, clock: Clock) -> AsyncIterator[Catalog]:
        catalog = MemoryCatalog(clock, self._rows)
        yield catalog
        await catalog.aclose()


@pytest.fixture
def store() -> Store:
    return InMemory()
