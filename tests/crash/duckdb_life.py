"""A daemon's time with a real SQLite catalog and a real DuckDB file, in one folder.

As a program it is the process that is recorded: whole runs, one after the other, by the daemon's
and the worker's own code. What was acknowledged goes into the record as marks.
"""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest import mock

import anyio

from catalog.clock import ManualClock
from catalog.port import Catalog, new_operation_id
from catalog.records import ErrorClass, Holder, Outcome, Refresh, Retention
from catalog.sqlite.backend import SqliteCatalog
from catalog.sqlite.database import Tuning
from reconciler.config.desired import Connection, Mode, Pipeline, Project, StreamSettings
from reconciler.connectors.destinations import duckdb_file
from reconciler.connectors.destinations.duckdb import DuckdbDestination
from reconciler.connectors.ports import ConnectorError, Destination, Receipt
from reconciler.lease.keeper import Keeper
from reconciler.lease.locks import HolderLock
from reconciler.run import stream
from tests.crash.disk_recorder import mark
from tests.crash.duckdb_books import Store, markers
from tests.crash.whole_books import Books
from tests.crash.whole_world import LIMIT, TTL, InThread, Lanes, NoLocks, Power, Witness, one_run

FILE = "shop.duckdb"


def project_of(store: Store) -> Project:
    """One pipeline from the store into the file."""
    append = StreamSettings(mode=Mode.APPEND)
    shop = Pipeline("shop", "shelf", "lake", defaults=append, streams=store.streams)
    return Project(
        "story",
        Path("/nowhere"),
        "sqlite:///nowhere",
        connections={"shelf": Connection("shelf", "shelf"), "lake": Connection("lake", "duckdb")},
        pipelines={"shop": shop},
    )


class Told(Books):
    """Books of a recorded process: what is told to them goes into the log."""

    def asked(self, verb: str, args: Sequence[Any]) -> None:
        if verb == "commit":
            mark(pickle.dumps(("asked", (verb, args))))

    def acknowledged(self, verb: str, args: Sequence[Any], answer: Any) -> None:
        if verb in ("claim", "commit", "finish"):
            mark(pickle.dumps(("acknowledged", (verb, args, answer))))

    def published(self, marks: Mapping[str, int]) -> None:
        mark(pickle.dumps(("published", (dict(marks),))))


class Telling(DuckdbDestination):
    """The destination, whose publishes go into the books; busy with a chance of ``busy``."""

    def __init__(self, path: Path, books: Books, busy: float) -> None:
        super().__init__(path)
        self._books, self._busy = books, busy
        self._chance = random.Random(0)

    def publish(self, receipts: Sequence[Receipt]) -> None:
        if self._chance.random() < self._busy:
            raise ConnectorError(ErrorClass.TRANSIENT, "busy", busy=True)
        super().publish(receipts)
        self._books.published({r.name.owner.stream: r.name.seq for r in receipts})


class Session:
    """A daemon's time with the catalog in ``folder`` open. ``boot`` is also the holder's name."""

    def __init__(self, folder: Path, boot: int, store: Store, books: Books) -> None:
        self.path, self.store, self._folder = folder / FILE, store, folder
        self._books, self._power = books, Power()
        wall = 1_790_000_000 * 10**6 + boot * 10**11
        self._clock = ManualClock(boot_id=f"boot {boot}", boot_ns=10**9, wall_us=wall)
        self._holder = Holder(f"daemon-{boot}", "host", 1)

    async def live(self, work: Callable[[Session], Any], tuning: Tuning, busy: float = 0.0) -> None:
        """Open the catalog, work, and close it again."""
        catalog = await SqliteCatalog.open(self._folder / "catalog.db", self._clock, LIMIT, tuning)
        try:
            self.catalog = cast(Catalog, Witness(catalog, self._power, self._books))
            locks = cast(HolderLock, NoLocks())
            self._keeper = Keeper(self.catalog, self._holder, locks, self._clock, TTL)
            self._destination = Telling(self.path, self._books, busy)
            await work(self)
        finally:
            await catalog.aclose()

    async def run(self) -> Outcome | None:
        """One whole run, which must end well, or with the database busy."""
        worker = InThread(self._power, Lanes(self.store, cast(Destination, self._destination)))
        run, done = await one_run(self.catalog, self._keeper, project_of(self.store), worker)
        for result in done.streams:
            fine = result.outcome in (Outcome.SUCCEEDED, Outcome.NOTHING_NEW)
            assert fine or result.reason == "busy", result
        assert not done.failure, done
        return run.outcome

    async def refresh(self) -> None:
        wish = Refresh("shop", "orders")
        await self.catalog.edit(new_operation_id(), "ann", "because", wish)

    async def retain(self) -> None:
        before = self._clock.wall_us() - 60 * 10**6
        await self.catalog.retain(new_operation_id(), Retention(before, before, 50))

    async def look(self) -> None:
        """Was anything lost that had been acknowledged? And is what was not whole or absent?"""

        def marker(stream: str) -> int:
            found = self._destination.marker(stream)
            return found.seq if found else 0

        await self._books.check(self.catalog, marker)
        told = {table: seq for table in self.store.streams if (seq := marker(table))}
        if self.path.exists():
            # Not by DuckDB alone: a marker that is remembered is true, too, of a file that is to be
            # put right first.
            with self._destination._file.open(read_only=True) as connection:
                assert told == markers(connection), "what is remembered of the markers is not so"


# -- the recorded process ----------------------------------------------------------------------


@dataclass(frozen=True)
class Life:
    """What a recorded process is to do in ``folder``; ``store`` is what the source has."""

    folder: Path
    store: Store
    boot: int
    runs: int
    seed: int


def lead(life: Life) -> None:
    """In the recorded process: runs, one after the other."""
    chance = random.Random(life.seed)
    session = Session(life.folder, life.boot, life.store, Told())
    # DuckDB makes a checkpoint by itself when its log is long; in some lives it is soon.
    long_log = mock.patch.object(duckdb_file, "LONG_LOG", chance.choice(("1KB", "16MB")))
    tuning = Tuning(
        checkpoint_pages=chance.choice((20, 100)), truncate_bytes=chance.choice((100_000, 400_000))
    )

    async def work(session: Session) -> None:
        for _ in range(life.runs):
            session.store.grow()
            mark(pickle.dumps(("store", session.store)))
            await session.run()
            match chance.randrange(8):
                case 0:
                    await session.refresh()
                case 1 | 2:
                    await session.retain()

    with mock.patch.object(stream, "SEAL_BYTES", 1), long_log:
        anyio.run(session.live, work, tuning, chance.choice((0.0, 0.5)))


if __name__ == "__main__":
    lead(pickle.loads(sys.stdin.buffer.read()))
