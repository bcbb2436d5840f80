"""Checkpoints on a thread and a connection of their own, away from the loop and the writer (D6)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import apsw

from catalog.errors import CatalogError

PASSIVE_PAGES = 1_000
"""A WAL grown by so many pages is copied back, as far as readers allow."""
TRUNCATE_BYTES = 64 * 1024 * 1024
"""A WAL this long is also cut."""


class Checkpointer:
    """Copies the WAL back into the file when it has grown."""

    def __init__(self, path: Path, connect: Callable[[], apsw.Connection]) -> None:
        self._wal = path.with_name(path.name + "-wal")
        self._connect = connect
        self._wake = threading.Event()
        self._stopping = False
        self._done_pages = 0
        self._thread = threading.Thread(target=self._serve, name="catalog-checkpoint", daemon=True)
        self._thread.start()

    def wal_grew(self, pages: int) -> None:
        """Told after each commit how long the WAL is; called on the writer's thread."""
        if pages < self._done_pages:
            self._done_pages = 0
        if pages - self._done_pages >= PASSIVE_PAGES:
            self._done_pages = pages
            self._wake.set()

    def wal_bytes(self) -> int:
        try:
            return self._wal.stat().st_size
        except OSError:
            return 0

    def stop(self) -> None:
        """End the thread. Blocks; called from a thread."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def _serve(self) -> None:
        db: apsw.Connection | None = None
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._stopping:
                break
            try:
                db = db or self._connect()
                mode = "truncate" if self.wal_bytes() > TRUNCATE_BYTES else "passive"
                db.execute(f"pragma wal_checkpoint({mode})").fetchall()
            except (apsw.Error, CatalogError):
                db = None  # the writer meets the same trouble and says so; the next round retries
        if db is not None:
            db.close()
