"""What tests of the SQLite catalog's writer have in common: it is kept busy, and its work fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import apsw
import pytest

from catalog.records import PipelineState
from catalog.sqlite.backend import SqliteCatalog
from catalog.sqlite.operations import Operations
from tests.patience import PATIENCE


class Gate:
    """Keeps the writer's thread busy from ``enter`` to ``leave``, as a slow disk would."""

    def __init__(self, path: Path) -> None:
        self._db = apsw.Connection(str(path))
        self._db.set_busy_timeout(round(PATIENCE * 1_000))

    def __enter__(self) -> None:
        self._db.execute("begin immediate")

    def __exit__(self, *_: object) -> None:
        self._db.execute("rollback")
        self._db.close()


async def begun(catalog: SqliteCatalog) -> None:
    """Wait until the writer has taken all that was queued."""
    with anyio.fail_after(PATIENCE):
        writer = catalog._writer
        while writer._collected or writer._queue.qsize():  # noqa: ASYNC110
            await anyio.sleep(0.001)


def fail_half_way(monkeypatch: pytest.MonkeyPatch, pipeline: str) -> None:
    """An edit of ``pipeline`` meets a fault of the program, with something written already."""
    carry_out = Operations.edit

    def faulty(self: Operations, by: str, why: str, action: Any) -> Any:
        if action.pipeline == pipeline:
            self._tables.write_pipeline(PipelineState("x", version=1, change=99))
            raise ZeroDivisionError
        return carry_out(self, by, why, action)

    monkeypatch.setattr(Operations, "edit", faulty)
