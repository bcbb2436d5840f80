"""Group commit: one thread owns the one connection that writes.

Whatever waits when the thread comes round goes into one transaction and one flush; then all are
acknowledged with one wake-up of the loop (D7). An operation is acknowledged after ``COMMIT`` and
never before (D1). An error from ``COMMIT`` itself leaves open whether it happened: the file is
closed, recovered, and asked (D2).
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from typing import TypeAlias

import apsw

from catalog.clock import Clock
from catalog.errors import BadRequest, CatalogError, Full, Unavailable, Unknown
from catalog.sqlite import database
from catalog.sqlite.checkpoints import Checkpointer
from catalog.sqlite.committing import Request
from catalog.sqlite.database import Location
from catalog.sqlite.operations import ANSWERS, Operations
from catalog.sqlite.readers import Readers
from catalog.sqlite.tables import Tables
from catalog.sqlite.writes import Ask, Counters, Doubt, Stage, Write, fail, settle

ENOUGH = 256
"""Operations after which a group takes in no more of what waits."""
_log = logging.getLogger(__name__)
_RETRY_SECONDS = 1.0
"""How often a file that cannot be recovered is tried again while nothing else asks for it."""
_MAX_RESERVE = 64 * 1024 * 1024

_Asked: TypeAlias = list[Write | Ask | Doubt | None]
"""None: stop."""


class Writer:
    """The write connection and its thread. Started and stopped from the loop's side."""

    def __init__(
        self,
        location: Location,
        clock: Clock,
        limit_bytes: int,
        db: apsw.Connection,
        readers: Readers,
        checkpointer: Checkpointer,
    ) -> None:
        self.counters = Counters()
        self._location, self._clock = location, clock
        self._limit = limit_bytes
        self._growth_ends = growth_ends(limit_bytes)
        self._readers, self._checkpointer = readers, checkpointer
        self._queue: queue.SimpleQueue[_Asked] = queue.SimpleQueue()
        self._collected: _Asked = []
        """Asked for in this turn of the loop: the thread is woken once for all of it."""
        checkpointer.on_doubt = lambda: self._queue.put([Doubt()])
        self._lock = threading.Lock()
        self._stopping = False
        self._identity = location.identity()
        self._has_tail = False
        """Behind the log's end may be a commit that could not be synced."""
        self._use(db)
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._serve, name="catalog-writer", daemon=True)
        self._thread.start()

    # -- on the loop ------------------------------------------------------------------------------

    def submit(self, write: Write) -> None:
        """Queue an operation. Raises ``Unavailable`` once the catalog is closed."""
        if self._stopping:
            raise Unavailable(f"{self._location.path} is closed")
        self._collect(write)

    def _collect(self, item: Write | Ask) -> None:
        if not self._collected:
            self._loop.call_soon(self._hand_over)
        self._collected.append(item)

    def _hand_over(self) -> None:
        if self._collected:
            self._queue.put(self._collected)
            self._collected = []

    def withdraw(self, write: Write) -> bool:
        """True: it had not begun, and will not."""
        with self._lock:
            if write.stage is Stage.QUEUED:
                write.stage = Stage.WITHDRAWN
        return write.stage is Stage.WITHDRAWN

    async def foreign_change(self) -> int:
        """A change that no change by another process is above, as of now (D5)."""
        if self._stopping:
            return self._foreign
        done: asyncio.Future[int] = self._loop.create_future()
        self._collect(Ask(done))
        return await done

    def stop(self) -> None:
        """Take nothing more; what is queued is carried out."""
        self._stopping = True
        self._collected.append(None)
        self._hand_over()

    def join(self) -> None:
        """Wait for the end that ``stop`` asked for. Blocks; called from a thread."""
        self._thread.join()

    # -- the thread -------------------------------------------------------------------------------

    def _use(self, db: apsw.Connection) -> None:
        self._db: apsw.Connection | None = db
        self._tables = Tables(db)
        self._operations = Operations(self._tables, self._clock)
        db.pragma("max_page_count", self._limit // database.PAGE_SIZE)
        db.set_wal_hook(self._on_wal)
        # What was written before this connection may be anyone's.
        self._data_version: int = db.pragma("data_version")
        self._foreign: int = self._tables.last_change()

    def _on_wal(self, _db: apsw.Connection, _name: str, pages: int) -> int:
        self._checkpointer.wal_grew(pages)
        return apsw.SQLITE_OK

    def _serve(self) -> None:
        ends = False
        while not ends:
            try:
                first = self._queue.get(timeout=None if self._db else _RETRY_SECONDS)
            except queue.Empty:
                self._recover()
                continue
            group, asks, ends = self._gather(first)
            if self._checkpointer.doubt and self._db is not None:
                self._give_up(self._checkpointer.doubt)
            if group:
                self._carry_out_safely(group)
            looks = [(ask, self._look()) for ask in asks]
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(settle, group, looks)
            if self._db is not None:
                self._checkpointer.copy_rest(self._db)
        if self._db is not None:
            with suppress(apsw.Error):
                self._db.close()

    def _gather(self, found: _Asked) -> tuple[list[Write], list[Ask], bool]:
        while len(found) < ENOUGH and not self._queue.empty():
            found += self._queue.get_nowait()
        with self._lock:
            writes = [w for w in found if isinstance(w, Write) and w.stage is Stage.QUEUED]
            for write in writes:
                write.stage = Stage.BEGUN
        return writes, [a for a in found if isinstance(a, Ask)], None in found

    def _look(self) -> int:
        """The write connection's ``data_version`` moves with other connections' commits alone."""
        if self._db is not None:
            with suppress(apsw.Error):
                version = self._db.pragma("data_version")
                if version != self._data_version:
                    self._foreign = self._tables.last_change()
                    self._data_version = version  # last: else what could not be read is missed
        return self._foreign

    def _carry_out_safely(self, group: Sequence[Write]) -> None:
        """A fault of this program costs a group, and never the thread that all wait for."""
        try:
            self._carry_out(group)
        except Exception as error:
            _log.exception("the catalog's writer failed")
            what = f"{self._location.path}: a fault of this program, {error!r}"
            for write in group:
                if write.error is None:
                    write.error = Unknown(f"{what}: it may have happened")
            self._give_up(what)

    # -- one group --------------------------------------------------------------------------------

    def _carry_out(self, group: Sequence[Write], *, again: bool = False) -> None:
        """One transaction for all; each write then has its answer or its error.

        Nothing is refused in most groups: they go without savepoints, which cost a tenth. A group
        in which something was refused half-way is done again with one for each. If with one the
        whole transaction fell (D1), each is done again in a transaction of its own.
        """
        for attempt in (self._all_at_once, self._each_in_a_savepoint):
            if self._in_one_transaction(group, attempt, again=again):
                return
            if len(group) == 1:  # alone, the transaction is its savepoint
                with suppress(apsw.Error):
                    self._repeat(group[0])
                return
        for write in group:
            self._carry_out([write], again=again)

    def _in_one_transaction(
        self,
        group: Sequence[Write],
        attempt: Callable[[apsw.Connection, Sequence[Write]], bool],
        *,
        again: bool,
    ) -> bool:
        """Whether all writes are done with, one way or the other."""
        for write in group:
            write.error = None
        db = self._begin(group)
        if db is None:
            return True
        try:
            is_whole = attempt(db, group)
        except apsw.FullError:
            is_whole = False
            fail(group, Full, self._full_words())
        except apsw.Error as error:
            is_whole = False
            fail(group, Unavailable, self._note(error))
        except Exception as error:  # found out whose it is when each goes alone
            is_whole = False
            fault = database.in_words(self._location.path, error)
            for write in group:
                write.error = fault
        if is_whole:
            self._commit(db, group, again=again)
        else:
            self._roll_back(db)
        return is_whole

    def _begin(self, group: Sequence[Write]) -> apsw.Connection | None:
        if not self._is_the_file() or not (self._db or self._recover()):
            fail(group, Unavailable, self.counters.last_error)
            return None
        db = self._db
        assert db is not None
        try:
            db.execute("begin immediate")
        except apsw.BusyError:
            who = database.who_writes(self._location.path)
            self.counters.last_error = (
                f"{self._location.path} has been kept by {who} for "
                f"{self._location.tuning.busy_seconds:g} s; end it, or let it finish"
            )
            fail(group, Unavailable, self.counters.last_error)
            return None
        except apsw.Error as error:
            self._give_up(f"{self._location.path}: {error}")
            fail(group, Unavailable, self.counters.last_error)
            return None
        self._operations.begin()
        return db

    def _is_the_file(self) -> bool:
        """Whether the path still leads to the file that is open (D6)."""
        if self._location.identity() == self._identity:
            return True
        self.counters.last_error = (
            f"{self._location.path} was replaced or removed while it was open, and nothing written "
            "now would be kept: stop every program that has it open, see that the right file is "
            "there, and start again"
        )
        return False

    def _all_at_once(self, db: apsw.Connection, group: Sequence[Write]) -> bool:
        """Without savepoints. False: one failed that had written something."""
        full = self._is_full(db)
        for are_commits, writes in groupby(group, lambda write: write.verb == "commit"):
            if are_commits and not full:
                self._commit_together(list(writes))
                continue
            for write in writes:
                before = db.total_changes()
                if not self._carry_out_one(db, write, full=full):
                    if not db.in_transaction or db.total_changes() != before:
                        return False
                    self._repeat(write)
        return True

    def _commit_together(self, writes: Sequence[Write]) -> None:
        """Commits that follow each other. Raises ``apsw.Error`` when one was sent before."""
        now, operations, refused = self._clock.wall_us(), [], []
        requests = [write.carry_out for write in writes if isinstance(write.carry_out, Request)]
        for write, done in zip(writes, self._operations.commit_all(requests), strict=True):
            if isinstance(done, Exception):
                write.error = database.in_words(self._location.path, done)
                refused.append(write)
            else:
                write.answer, coded = done
                operations.append((write.op, write.verb, now, coded))
        self._tables.many("add_operation", operations)
        for write in refused:
            self._repeat(write)

    def _each_in_a_savepoint(self, db: apsw.Connection, group: Sequence[Write]) -> bool:
        """False: one took the whole transaction along."""
        full = self._is_full(db)
        for write in group:
            db.execute("savepoint one")
            if not self._carry_out_one(db, write, full=full):
                if not db.in_transaction:
                    return False
                db.execute("rollback to one")
                self._repeat(write)
            db.execute("release one")
        return True

    def _carry_out_one(self, db: apsw.Connection, write: Write, *, full: bool) -> bool:
        """Whether what it wrote is to be committed; if not, it has an error."""
        try:
            if full and write.grows:
                raise Full(self._full_words())
            do = write.carry_out
            write.answer, coded = (
                self._operations.commit(do) if isinstance(do, Request) else do(self._operations)
            )
            # Last: that the id was used before is found out by writing it.
            self._tables.write_operation(write.op, write.verb, self._clock.wall_us(), coded)
        except CatalogError as error:
            write.error = error
        except apsw.FullError:
            write.error = Full(self._full_words())
        except apsw.Error as error:
            write.error = Unavailable(self._note(error))
        except Exception as error:
            write.error = database.in_words(self._location.path, error)
        else:
            return db.in_transaction
        return False

    def _note(self, error: apsw.Error) -> str:
        """The words for an error; it says why nothing can be written, unless it only says that an
        operation's id is there already."""
        words = f"{self._location.path}: {error}"
        if not isinstance(error, apsw.ConstraintError):
            self.counters.last_error = words
        return words

    def _repeat(self, write: Write) -> bool:
        """Give the answer of an operation that was carried out before (A5), if it was."""
        known = self._tables.operation(write.op)
        if known is None:
            return False
        verb, answer = known
        write.error = None
        if verb == write.verb:
            try:
                write.answer = ANSWERS[verb](self._tables, answer)
            except LookupError:
                write.error = BadRequest(
                    f"operation {write.op} was carried out, but so long ago that its answer is gone"
                )
        else:
            write.error = BadRequest(
                f"operation {write.op} was a {verb}; a {write.verb} needs an id of its own"
            )
        return True

    def _full_words(self) -> str:
        return (
            f"{self._location.path} has no room left (its ceiling is {self._limit} bytes); nothing "
            "is lost. Raise `catalog_limit`, keep runs for a shorter time in [retention], or make "
            "room on the disk"
        )

    def _is_full(self, db: apsw.Connection) -> bool:
        # Asked with every group: other processes make the file grow too, and it takes 4 us.
        used: int = db.pragma("page_count") - db.pragma("freelist_count")
        return used > self._growth_ends

    def _roll_back(self, db: apsw.Connection) -> None:
        if db.in_transaction:
            try:
                db.execute("rollback")
            except apsw.Error as error:
                self._give_up(f"{self._location.path}: {error}")

    def _commit(self, db: apsw.Connection, group: Sequence[Write], *, again: bool) -> None:
        try:
            db.execute("commit")
        except apsw.Error as error:
            self._has_tail = database.sync_failed(error)
            self._give_up(f"{self._location.path}: {error}")
            self._ask_what_happened(group, error, again=again)
        else:
            self.counters.groups += 1
            self.counters.writes += sum(1 for write in group if write.error is None)
            self.counters.last_error = ""

    # -- recovery (D2) ----------------------------------------------------------------------------

    def _give_up(self, what: str) -> None:
        """Close this process's connections: after an I/O error their page caches may lie."""
        self.counters.last_error = what
        db, self._db = self._db, None
        if db is not None:
            database.close_in_doubt(db)

    def _recover(self) -> bool:
        """Open the file anew and make all that the log holds durable; whether that succeeded."""
        self._readers.suspend()
        db = None
        try:
            if not self._is_the_file():
                raise Unavailable(self.counters.last_error)
            db = self._location.connect()
            if self._has_tail:
                _write_over_tail(db)
                self._has_tail = False
            with self._checkpointer.at_rest():
                if self._checkpointer.doubt:
                    db = self._read_log_anew(db)
                self._copy_log(db)
                self._checkpointer.connect()
            self._use(db)
            self._readers.resume("")
        except (apsw.Error, CatalogError) as error:
            self.counters.last_error = f"{self._location.path} cannot be recovered: {error}"
            self._db = None
            if db is not None:
                database.close_in_doubt(db)
            self._readers.resume(self.counters.last_error)
            return False
        self.counters.last_error = ""
        return True

    def _read_log_anew(self, db: apsw.Connection) -> apsw.Connection:
        """Whoever opens the log first takes nothing of it for copied; for that, close it."""
        self._checkpointer.disconnect()
        database.close_in_doubt(db)
        db = self._location.connect()
        _, copied = db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
        if copied > 0:
            database.close_in_doubt(db)
            raise Unavailable(
                f"{self._checkpointer.doubt}, and another process has it open: end that one"
            )
        return db

    def _copy_log(self, db: apsw.Connection) -> None:
        """Copy all that the log holds into the file, and cut it."""
        try:
            db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.Error as error:
            if database.sync_failed(error):
                self._checkpointer.doubt = f"it could not be synced ({error})"
            raise

    def _ask_what_happened(self, group: Sequence[Write], error: apsw.Error, *, again: bool) -> None:
        """After an error from ``COMMIT``: answer what is there, do the rest again, once."""
        pending = [write for write in group if write.error is None]
        what = f"{self._location.path}: COMMIT answered with an error ({error})"
        unclear = f"{what}, and the file cannot be read back: it may have happened"
        if not self._recover():
            fail(pending, Unknown, unclear)
            return
        try:
            absent = [write for write in pending if not self._repeat(write)]
        except apsw.Error as second:
            self._give_up(f"{self._location.path}: {second}")
            fail(pending, Unknown, unclear)
            return
        if again and absent:
            self.counters.last_error = f"{what}, twice: it did not happen"
            fail(absent, Unavailable, self.counters.last_error)
        elif absent:
            self._carry_out(absent, again=True)


def growth_ends(limit_bytes: int) -> int:
    """Pages above which nothing that only grows is begun, so that renew, finish and retention go
    on."""
    return (limit_bytes - min(_MAX_RESERVE, limit_bytes // 16)) // database.PAGE_SIZE


def _write_over_tail(db: apsw.Connection) -> None:
    """Commit, and change nothing, over the commit that failed: whoever opened the log anew would
    take it for good, and copy into the file what never reaches the log on the disk (D2).

    A row that is given the values that it has is not written; the version is, whatever it was.
    """
    db.execute("begin immediate")
    db.pragma("user_version", db.pragma("user_version"))
    db.execute("commit")
