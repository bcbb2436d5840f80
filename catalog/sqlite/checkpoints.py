"""Checkpoints on a thread and a connection of their own, away from the loop and the writer (D6)."""

from __future__ import annotations

import threading
from contextlib import suppress

import apsw

from catalog.errors import CatalogError
from catalog.sqlite.database import Location


class Checkpointer:
    """Copies the write-ahead log back into the file when it has grown.

    A failed checkpoint harms nothing: the log keeps what was not copied, and the next one copies it
    again. What fails for good shows in the log's size.
    """

    def __init__(self, location: Location) -> None:
        self._location = location
        self._wake = threading.Event()
        self._stopping = False
        self._done_pages = 0
        self._db: apsw.Connection | None = None
        self._lock = threading.Lock()
        """Held while the connection is in use."""
        self._thread = threading.Thread(target=self._serve, name="catalog-checkpoint", daemon=True)
        self._thread.start()

    def wal_grew(self, pages: int) -> None:
        """Told after each commit how long the log is; called on the writer's thread."""
        if pages < self._done_pages:
            self._done_pages = 0
        if pages - self._done_pages >= self._location.tuning.checkpoint_pages:
            self._done_pages = pages
            self._wake.set()

    def disconnect(self) -> None:
        """Close the connection once no checkpoint runs; the next one opens another."""
        with self._lock:
            db, self._db = self._db, None
            if db is not None:
                with suppress(apsw.Error):
                    db.close(force=True)

    def stop(self) -> None:
        """End the thread. Blocks; called from a thread."""
        self._stopping = True
        self._wake.set()
        self._thread.join()
        self.disconnect()

    def _serve(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._stopping:
                return
            with self._lock, suppress(apsw.Error, CatalogError):
                self._checkpoint()

    def _checkpoint(self) -> None:
        if self._db is None:
            self._db = self._location.connect()
        long = self._location.wal_bytes() > self._location.tuning.truncate_bytes
        mode = apsw.SQLITE_CHECKPOINT_TRUNCATE if long else apsw.SQLITE_CHECKPOINT_PASSIVE
        self._db.wal_checkpoint(mode=mode)
