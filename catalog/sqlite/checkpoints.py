"""Checkpoints on a thread and a connection of their own, away from the loop and the writer (D6)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import apsw

from catalog.sqlite.database import Location, close_in_doubt, sync_failed

_BUSY_MS = 20
"""How long to wait for others: while it waits to cut the log, nobody can write."""


class Checkpointer:
    """Copies the write-ahead log back into the file when it has grown.

    A failed checkpoint harms nothing: the log keeps what was not copied, and the next one copies it
    again. What fails for good shows in the log's size. But once the file could not be synced, what
    earlier checkpoints copied may be lost too, though the log counts it as copied and the next sync
    says that all is well: then all of the log is to be copied anew (D2), and ``on_doubt`` is told.
    """

    def __init__(self, location: Location) -> None:
        self._location = location
        self.doubt = ""
        """Why nothing may be copied before the log was read anew; empty: it may."""
        self.on_doubt: Callable[[], None] = lambda: None
        """Called on whichever thread found it out."""
        self._wake = threading.Event()
        self._stopping = False
        self._done_pages = 0
        self._rest_is_due = False
        self._db: apsw.Connection | None = None
        self.connect()
        self._lock = threading.RLock()
        """Held by every checkpoint until ``doubt`` tells how it went: another one in between would
        call copied what was lost, and the log would write over it."""
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
        if not self._rest_is_due or not self._lock.acquire(blocking=False):
            return
        try:
            if not self.doubt:
                self._rest_is_due = False
                with self._doubting():
                    writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        finally:
            self._lock.release()

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """No checkpoint runs meanwhile, and of those that ran ``doubt`` tells."""
        with self._lock:
            yield

    @contextmanager
    def _doubting(self) -> Iterator[None]:
        try:
            yield
        except apsw.Error as error:
            if sync_failed(error):
                self.doubt = f"{self._location.path} could not be synced ({error})"
                self.on_doubt()

    def connect(self) -> None:
        """Open a connection, if there is none; the file is as it should be. Not later than the
        writer's: the path may be led elsewhere afterwards."""
        if self._db is None:
            self._db = self._location.connect()
            self._db.set_busy_timeout(_BUSY_MS)
            self.doubt = ""

    def disconnect(self) -> None:
        """Close the connection once no checkpoint runs; there are none until ``connect``."""
        with self._lock:
            db, self._db = self._db, None
            if db is not None:
                close_in_doubt(db)

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
            with self._lock, self._doubting():
                if self._db is not None and not self.doubt:
                    self._checkpoint(self._db)

    def _checkpoint(self, db: apsw.Connection) -> None:
        tuning = self._location.tuning
        if self._location.wal_bytes() > tuning.truncate_bytes:
            db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            return
        db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        self._rest_is_due = True
