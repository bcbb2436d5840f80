"""The SQLite backend passes the suite, each handle with connections of its own on one file."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from catalog.clock import Clock
from catalog.conformance import *  # noqa: F403 - the suite is collected from here
from catalog.conformance import Store
from catalog.open import open_catalog
from catalog.port import Catalog


class InFile:
    """Handles on one file, as two processes of a host have them."""

    def __init__(self, path: Path) -> None:
        self._url = f"sqlite:///{path}"

    def open(self, clock: Clock) -> AbstractAsyncContextManager[Catalog]:
        return open_catalog(self._url, clock=clock)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return InFile(tmp_path / "catalog.db")
