"""Group commit: one thread owns the one connection that writes.

Whatever waits when the thread comes round goes into one transaction and one flush; then all are
acknowledged with one wake-up of the loop (D7). An operation is acknowledged after ``COMMIT`` and
never before (D1); an error from ``COMMIT`` itself leaves it unknown whether it happened, so the
file is reopened, recovered, and asked (D2).
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import apsw
import msgspec

from catalog.clock import Clock
from catalog.errors import BadRequest, CatalogError, Full, Unavailable, Unknown
from catalog.sqlite import database
from catalog.sqlite.operations import Operations
from catalog.sqlite.tables import Tables

MAX_GROUP = 256
RESERVE = 4 * 1024 * 1024
"""Bytes below the ceiling kept for renew, finish and retention."""


class _Stage(Enum):
    QUEUED = 0
    BEGUN = 1
    WITHDRAWN = 2


@dataclass(slots=True, eq=False)
class Write:
    """One operation on its way through the writer."""

    op: str
    verb: str
    carry_out: Callable[[Operations], object]
    answer_type: Any
    grows: bool
    done: asyncio.Future[Any]
    stage: _Stage = _Stage.QUEUED
    result: object = None
    error: CatalogError | None = None


@dataclass(slots=True, eq=False)
class _Ask:
    """Something to read on the write connection."""

    ask: Callable[[apsw.Connection], object]
    done: asyncio.Future[Any]


@dataclass(slots=True)
class Counters:
    writes: int = 0
    groups: int = 0
    last_error: str = ""
    generation: int = 0
    """Rises when the file was reopened: readers must follow."""


@dataclass(slots=True, eq=False)
class Writer:
    """The write connection and its thread. Made and closed on the loop's thread."""

    path: Path
    clock: Clock
    limit_bytes: int
    connect: Callable[[], apsw.Connection]
    wal_grew: Callable[[int], None]
    counters: Counters = field(default_factory=Counters)
    _queue: queue.SimpleQueue[Write | _Ask | None] = field(default_factory=queue.SimpleQueue)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _db: apsw.Connection | None = None
    _tables: Tables | None = None
    _operations: Operations | None = None
    _inode: int = 0
    _loop: asyncio.AbstractEventLoop | None = None
    _thread: threading.Thread | None = None

    # -- on the loop ------------------------------------------------------------------------------

    def start(self, db: apsw.Connection) -> None:
        """Take over an open, migrated connection and begin."""
        self._loop = asyncio.get_running_loop()
        self._use(db)
        self._inode = self.path.stat().st_ino
        self._thread = threading.Thread(target=self._serve, name="catalog-writer", daemon=True)
        self._thread.start()

    def submit(self, write: Write) -> None:
        self._queue.put(write)

    def ask(self, ask: Callable[[apsw.Connection], object]) -> asyncio.Future[Any]:
        assert self._loop is not None
        done: asyncio.Future[Any] = self._loop.create_future()
        self._queue.put(_Ask(ask, done))
        return done

    def withdraw(self, write: Write) -> bool:
        """True: it had not begun, and will not."""
        with self._lock:
            if write.stage is _Stage.QUEUED:
                write.stage = _Stage.WITHDRAWN
        return write.stage is _Stage.WITHDRAWN

    def stop(self) -> None:
        """Carry out what is queued, then close. Blocks; called from a thread."""
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()

    # -- on the writer's thread -------------------------------------------------------------------

    def _use(self, db: apsw.Connection) -> None:
        self._db, self._tables = db, Tables(db)
        self._operations = Operations(self._tables, self.clock)
        pages = (self.limit_bytes + RESERVE) // database.PAGE_SIZE
        db.pragma("max_page_count", pages)
        db.set_wal_hook(self._on_wal)

    def _on_wal(self, _db: apsw.Connection, _name: str, pages: int) -> int:
        self.wal_grew(pages)
        return apsw.SQLITE_OK

    def _serve(self) -> None:
        while True:
            first = self._queue.get()
            if first is None:
                break
            group, asks, ends = self._gather(first)
            if group:
                self._carry_out(group)
            self._answer(group, asks)
            if ends:
                break
        if self._db is not None:
            self._db.close()

    def _gather(self, first: Write | _Ask) -> tuple[list[Write], list[_Ask], bool]:
        found: list[Write | _Ask] = [first]
        ends = False
        while len(found) < MAX_GROUP:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
            if item is None:
                ends = True
                break
            found.append(item)
        with self._lock:
            writes = [w for w in found if isinstance(w, Write) and w.stage is _Stage.QUEUED]
            for write in writes:
                write.stage = _Stage.BEGUN
        return writes, [a for a in found if isinstance(a, _Ask)], ends

    def _answer(self, group: Sequence[Write], asks: Sequence[_Ask]) -> None:
        answers: list[tuple[asyncio.Future[Any], object, BaseException | None]] = [
            (write.done, write.result, write.error) for write in group
        ]
        for ask in asks:
            try:
                assert self._db is not None
                answers.append((ask.done, ask.ask(self._db), None))
            except (apsw.Error, AssertionError) as error:
                answers.append((ask.done, None, Unavailable(f"{self.path}: {error}")))
        assert self._loop is not None
        self._loop.call_soon_threadsafe(_settle, answers)

    # -- one group --------------------------------------------------------------------------------

    def _carry_out(self, group: list[Write]) -> None:
        for write in group:
            write.result = write.error = None
        if not self._usable():
            for write in group:
                write.error = Unavailable(self.counters.last_error)
            return
        db = self._db
        assert db is not None
        try:
            db.execute("begin immediate")
        except apsw.BusyError:
            who = database.who_writes(self.path)
            self._all_fail(group, Unavailable(f"{self.path} is being written by {who}; try again"))
            return
        except apsw.Error as error:
            self._broken(error)
            self._all_fail(group, Unavailable(f"{self.path}: {error}"))
            return
        if not self._carry_out_inside(db, group):
            # The transaction fell with one of them (D1): each again, alone.
            self._roll_back(db)
            if len(group) > 1:
                for write in group:
                    self._carry_out([write])
            return
        self._commit(db, group)

    def _all_fail(self, group: Sequence[Write], error: CatalogError) -> None:
        for write in group:
            write.error = error

    def _carry_out_inside(self, db: apsw.Connection, group: Sequence[Write]) -> bool:
        """Each write in a savepoint of its own. False: the whole transaction is gone."""
        full = self._is_full(db)
        alone = len(group) == 1
        for write in group:
            try:
                if not alone:
                    db.execute("savepoint one")
                self._carry_out_one(write, full=full)
                if not alone:
                    db.execute("release one")
            except (CatalogError, apsw.Error) as error:
                write.error = self._as_refusal(error)
                if not db.in_transaction or alone:
                    return False
                db.execute("rollback to one")
                db.execute("release one")
            if not db.in_transaction:
                write.error = Unavailable(f"{self.path}: the transaction was rolled back")
                return False
        return True

    def _carry_out_one(self, write: Write, *, full: bool) -> None:
        assert self._tables is not None
        assert self._operations is not None
        known = self._tables.operation(write.op)
        if known is not None:
            if known[0] != write.verb:
                raise BadRequest(
                    f"operation {write.op} was a {known[0]}; a {write.verb} needs its own id"
                )
            write.result = msgspec.json.decode(known[1], type=write.answer_type)
            return
        if full and write.grows:
            raise Full(
                f"{self.path} has reached its ceiling of {self.limit_bytes} bytes: raise "
                "`catalog_limit`, or keep runs for a shorter time in [retention]; nothing is lost"
            )
        write.result = write.carry_out(self._operations)
        self._tables.write_operation(write.op, write.verb, self.clock.wall_us(), write.result)

    def _as_refusal(self, error: CatalogError | apsw.Error) -> CatalogError:
        if isinstance(error, CatalogError):
            return error
        if isinstance(error, apsw.FullError):
            return Full(f"{self.path}: the disk or the ceiling is full; nothing is lost")
        return Unavailable(f"{self.path}: {error}")

    def _is_full(self, db: apsw.Connection) -> bool:
        return bool(db.pragma("page_count") * database.PAGE_SIZE >= self.limit_bytes)

    def _roll_back(self, db: apsw.Connection) -> None:
        if db.in_transaction:
            try:
                db.execute("rollback")
            except apsw.Error as error:
                self._broken(error)

    def _commit(self, db: apsw.Connection, group: Sequence[Write]) -> None:
        try:
            db.execute("commit")
        except apsw.BusyError:
            self._roll_back(db)
            self._all_fail(group, Unavailable(f"{self.path} is busy; try again"))
        except apsw.Error as error:
            self._broken(error)
            self._read_back(group)
        else:
            self.counters.groups += 1
            self.counters.writes += len(group)
            self.counters.last_error = ""

    # -- recovery (D2) ----------------------------------------------------------------------------

    def _broken(self, error: apsw.Error) -> None:
        """After an I/O error the page cache may lie: the file is reopened before anything else."""
        self.counters.last_error = f"{self.path}: {error}"
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(apsw.Error):  # it is given up either way
                db.close(force=True)

    def _usable(self) -> bool:
        if self._db is not None:
            return True
        try:
            db = self.connect()
            db.execute("pragma wal_checkpoint(truncate)").fetchall()
        except (apsw.Error, CatalogError) as error:
            self.counters.last_error = f"{self.path}: {error}"
            return False
        self._use(db)
        self.counters.generation += 1
        return True

    def _read_back(self, group: Sequence[Write]) -> None:
        """Ask the recovered file which operations happened; unknown where it cannot be asked."""
        usable = self._usable()
        for write in group:
            if write.error is not None:
                continue
            why = f"{self.path}: the answer to COMMIT was an error ({self.counters.last_error})"
            try:
                known = self._tables.operation(write.op) if usable and self._tables else None
            except apsw.Error:
                usable, known = False, None
            if not usable:
                write.error = Unknown(why + "; it may have happened")
            elif known is None:
                write.error = Unavailable(why + "; it did not happen")
            else:
                write.result = msgspec.json.decode(known[1], type=write.answer_type)

    def check_identity(self) -> None:
        """The file at the path is the one that is open (D6). Raises ``Unavailable``."""
        try:
            inode = self.path.stat().st_ino
        except OSError:
            inode = 0
        if inode != self._inode:
            self.counters.last_error = (
                f"{self.path} was replaced or removed while it was open: stop every daemon, put "
                "the right file there, and start again"
            )
            raise Unavailable(self.counters.last_error)


def _settle(answers: Sequence[tuple[asyncio.Future[Any], object, BaseException | None]]) -> None:
    for future, result, error in answers:
        if future.done():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
