"""Checkpoints on a thread and a connection of their own, away from the loop and the writer (D6)."""

from __future__ import annotations

import threading
from contextlib import suppress

import apsw

from catalog.sqlite.database import Location

_BUSY_MS = 20
"""How long to wait for others: while it waits to cut the log, nobody can write."""


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
        self._rest_is_due = False
        self._db: apsw.Connection | None = None
        self.connect()
        self._lock = threading.Lock()
        """Held while the connection is in use."""
        self._thread = threading.Thread(target=self._serve, name="catalog-checkpoint", daemon=True)
        self._thread.start()

    def wal_grew(self, pages: int) -> None:
        """Told after each commit how long the log is; called on the writer's thread."""
        if pages < self._done_pages:  # it started anew
            self._done_pages = 0
            self._rest_is_due = False
        if pages - self._done_pages >= self._location.tuning.checkpoint_pages:
            self._done_pages = pages
            self._wake.set()

    def copy_rest(self, writer: apsw.Connection) -> None:
        """Copy what was written while the last checkpoint ran; called between two transactions.

        While a checkpoint copies, the writer goes on, so that it never arrives at the end. Only
        once it does, the log starts anew, and that is worth a short wait: writing over a file's
        blocks takes half as long as making it longer.
        """
        if self._rest_is_due:
            self._rest_is_due = False
            with suppress(apsw.Error):
                writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)

    def connect(self) -> None:
        """Open a connection; there is none. Not later than the writer's: the path may be led
        elsewhere afterwards."""
        self._db = self._location.connect()
        self._db.set_busy_timeout(_BUSY_MS)

    def disconnect(self) -> None:
        """Close the connection once no checkpoint runs; there are none until ``connect``."""
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
            with self._lock, suppress(apsw.Error):
                if self._db is not None:
                    self._checkpoint(self._db)

    def _checkpoint(self, db: apsw.Connection) -> None:
        tuning = self._location.tuning
        if self._location.wal_bytes() > tuning.truncate_bytes:
            db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            return
        db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        self._rest_is_due = True
