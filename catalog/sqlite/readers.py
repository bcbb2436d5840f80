"""The connections that read: one for the event loop, one for a thread (D3).

Reads that are short run inline on the loop, on a connection that never waits for a lock; a read
that is long, or that met a lock, runs on the other one in a thread. Both are closed while the
writer recovers the file (D2).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import anyio
import apsw
from anyio import to_thread

from catalog.errors import Unavailable
from catalog.sqlite.database import (
    NOT_UNDERSTOOD,
    Location,
    close_in_doubt,
    give_back,
    in_words,
)
from catalog.sqlite.tables import Tables

T = TypeVar("T")


class Readers:
    """Reading for one open catalog. ``near`` is for the loop's thread alone."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._lock = threading.Lock()
        """Held by a read in the thread, and by the writer while it recovers."""
        self._turn = anyio.Lock()
        self._why = ""
        """Why nothing can be read now; empty: it can."""
        self._connect()

    def _connect(self) -> None:
        # Both at once and not when first needed: the path may be led elsewhere afterwards.
        self.near = Tables(self._location.connect(for_loop=True))
        self._far = Tables(self._location.connect())

    async def read(self, read: Callable[[Tables], T], *, near: bool = True) -> T:
        """Run a read inline, or in the thread when it is not ``near``. Raises ``Unavailable``."""
        if near:
            try:
                return read(self.near)
            except (apsw.Error, *NOT_UNDERSTOOD):
                pass  # locked, or closed for a recovery: the thread waits for that
        async with self._turn:
            return await to_thread.run_sync(self._read_far, read)

    def _read_far(self, read: Callable[[Tables], T]) -> T:
        with self._lock:
            if self._why:
                raise Unavailable(self._why)
            try:
                return read(self._far)
            except (apsw.Error, *NOT_UNDERSTOOD) as error:
                raise in_words(self._location.path, error, reading=True) from None

    # -- while the writer recovers ----------------------------------------------------------------

    def suspend(self) -> None:
        """Close both connections; reads wait until ``resume``. Called on the writer's thread.

        The checkpointer's is open whenever these are, so that neither is the last one.
        """
        self._lock.acquire()
        self.close()

    def resume(self, why_not: str) -> None:
        """Let reads go on over new connections, or fail with ``why_not``.

        Raises ``CatalogError`` when there are no new connections; ``resume`` is still due.
        """
        if not why_not:
            self._connect()
        self._why = why_not
        self._lock.release()

    def close(self, *, in_doubt: bool = False) -> None:
        """Close both. Nothing reads in the thread now; the loop may be in the midst of a read.

        The last connection to close copies the log back, unless the file is ``in_doubt``.
        """
        while True:
            try:
                self.near.db.close(force=True)
            except apsw.ThreadingViolationError:
                time.sleep(0.001)
            except apsw.Error:
                break
            else:
                break
        if in_doubt:
            close_in_doubt(self._far.db)
        else:
            give_back(self._far.db)
