"""Each step of seal, publish and discard fails in turn, once and for good (B5, B8, D1, E1, E2).

Whole runs through the daemon's and the worker's own code; only the disk under the destination is
bad. A run that meets the fault fails with a sentence, as something that may be tried again; what is
visible then is whole batches; and once the disk is well the next runs end well, with the source's
rows at the destination, each once, and nothing left over.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast
from unittest import mock

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.clock import ManualClock
from catalog.memory import MemoryCatalog
from catalog.records import ErrorClass, Holder, Outcome, Run
from reconciler.config.desired import Mode, StreamSettings
from reconciler.connectors.destinations.duckdb import DuckdbDestination
from reconciler.connectors.destinations.files import DISK, Files
from reconciler.connectors.destinations.parquet import ParquetDestination
from reconciler.connectors.destinations.parquet_table import TableFolder
from reconciler.connectors.ports import Destination, Owner
from reconciler.lease.keeper import Keeper
from reconciler.lease.locks import HolderLock
from reconciler.run import stream
from tests.crash.faulty_files import Fault, FaultyFiles, faults_of
from tests.crash.test_catalog_faults import opened_files
from tests.crash.whole_books import Shelf, is_bad
from tests.crash.whole_world import PIPELINE, PROJECT, TTL, InThread, Lanes, NoLocks, Power, one_run
from tests.destination_kit import leftovers, orders, request, seal

pytestmark = pytest.mark.anyio
Rows = dict[str, list[int]]
"""The ids that are visible, by table."""

TABLES = ("orders", "country")
PARTS = 4
"""All steps take some minutes: in so many tests, which can run side by side."""
WHOLE = "RECONCILER_TEST_EVERY_WRITE" in os.environ
"""Each of the many writes to one file, in place of three of them."""


class Lake:
    """Parquet, looked at through its manifest as the view does."""

    project = PROJECT

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lake"

    def open(self, files: Files) -> Destination:
        return ParquetDestination(self.path, files)

    def rows(self) -> Rows:
        return {table: self._ids(table) for table in TABLES}

    def _ids(self, table: str) -> list[int]:
        folder = TableFolder(DISK, self.path / table, table)
        state = folder.state()
        names = folder.manifest(state) if state else []
        # Out of memory: a file that Arrow reads is closed by a thread of its own, some time later.
        files = [pa.BufferReader((folder.path / name).read_bytes()) for name in names]
        tables = [pq.ParquetFile(file).read(["id"], use_threads=False) for file in files]
        return sorted(value for one in tables for value in one["id"].to_pylist())

    def left(self) -> list[str]:
        beside = self.path.with_name(".lake.reconciler-swap")
        return [*leftovers(self.path), *([str(beside)] if beside.exists() else [])]


class Database:
    """DuckDB, by a connection of our own."""

    project = replace(
        PROJECT,
        pipelines={
            "shop": replace(
                PIPELINE,
                streams={
                    "orders": StreamSettings(mode=Mode.MERGE, cursor=("id",), key=("id",)),
                    "country": StreamSettings(mode=Mode.REPLACE),
                },
            )
        },
    )

    def __init__(self, folder: Path) -> None:
        self.path = folder / "out.duckdb"

    def open(self, files: Files) -> Destination:
        return DuckdbDestination(self.path, files=files)

    def rows(self) -> Rows:
        if not self.path.exists():
            return {table: [] for table in TABLES}
        with duckdb.connect(str(self.path), read_only=True, config={"threads": 1}) as db:
            return {table: self._ids(db, table) for table in TABLES}

    @staticmethod
    def _ids(db: duckdb.DuckDBPyConnection, table: str) -> list[int]:
        try:
            return [row[0] for row in db.execute(f"SELECT id FROM {table} ORDER BY 1").fetchall()]
        except duckdb.CatalogException:
            return []

    def left(self) -> list[str]:
        return leftovers(self.path.parent)


KINDS: dict[str, Callable[[Path], Lake | Database]] = {"parquet": Lake, "duckdb": Database}


@dataclass(frozen=True)
class Trial:
    """One way for the disk to fail."""

    at: int
    call: str
    fault: Fault
    lasting: bool

    def __str__(self) -> str:
        how = "for good" if self.lasting else "once"
        return f"call {self.at}, {self.call}: {self.fault.name} {how}"


class Story:
    """Runs over a source that grows, into a destination on a disk that may fail."""

    def __init__(self, kind: str, folder: Path) -> None:
        folder.mkdir()
        self.files, self.place = FaultyFiles(), KINDS[kind](folder)
        self.shelf = Shelf(random.Random(1))
        self.catalog, clock = MemoryCatalog(ManualClock()), ManualClock()
        locks = cast(HolderLock, NoLocks())
        self._keeper = Keeper(self.catalog, Holder("daemon-1", "host", 1), locks, clock, TTL)
        destination = self.place.open(cast(Files, self.files))
        self._lanes = Lanes(self.shelf, destination)

    async def run(self) -> Run:
        worker = InThread(Power(), self._lanes)
        run, _ = await one_run(self.catalog, self._keeper, self.place.project, worker)
        return run

    def grow(self, count: int) -> None:
        self.shelf.orders += count
        self.shelf.country = [{"id": n, "name": "x"} for n in range(self.shelf.orders)]

    async def begin(self) -> None:
        """A run that went well, and a batch that was sealed and never committed."""
        self.grow(4)
        assert (await self.run()).outcome is Outcome.SUCCEEDED
        owner = Owner(self.catalog.id, "shop", "orders")
        seal(self.place.open(DISK), request(9, owner=owner), orders(99))
        self.grow(7)

    def allowed(self) -> dict[str, list[list[int]]]:
        """What may be visible while the second run is under way: commits come after each three."""
        last = self.shelf.orders
        return {
            "orders": [self.good(end) for end in (4, 7, 10, last)],
            "country": [list(range(4)), list(range(last))],
        }

    @staticmethod
    def good(end: int) -> list[int]:
        return [n for n in range(1, end + 1) if not is_bad(n)]

    async def steps(self) -> list[tuple[int, str]]:
        """Those of the second run when all is well."""
        await self.begin()
        self.files.arm(0, Fault.EIO, lasting=False)
        assert (await self.run()).outcome is Outcome.SUCCEEDED
        self.check_done()
        return self.files.steps(whole=WHOLE)

    async def attempt(self, trial: Trial) -> bool:
        """Whether the fault struck; what is promised is checked on the way."""
        await self.begin()
        self.files.arm(trial.at, trial.fault, lasting=trial.lasting)
        run = await self.run()
        if run.outcome is not Outcome.SUCCEEDED:
            assert self.files.struck, run
            check_words(run)
        seen = self.place.rows()
        for table, states in self.allowed().items():
            assert seen[table] in states, (table, seen[table])
        self.files.heal()
        for _ in range(2):
            run = await self.run()
        assert run.outcome is Outcome.SUCCEEDED, run
        self.check_done()
        self.grow(2)
        assert (await self.run()).outcome is Outcome.SUCCEEDED
        self.check_done()
        assert opened_files(self.place.path.parent) == []
        return bool(self.files.struck)

    def check_done(self) -> None:
        last = self.shelf.orders
        assert self.place.rows() == {"orders": self.good(last), "country": list(range(last))}
        assert self.place.left() == []


def check_words(run: Run) -> None:
    """It may be tried again, and a person can understand it."""
    assert run.outcome is Outcome.FAILED, run
    for result in run.streams:
        if result.outcome is not Outcome.SUCCEEDED:
            assert result.error is ErrorClass.TRANSIENT, result
    assert "/" in run.reason, run.reason
    for word in ("fault of its own", "Errno", "Error:"):
        assert word not in run.reason, run.reason


def trials(steps: list[tuple[int, str]]) -> list[Trial]:
    return [
        Trial(at, call, fault, lasting)
        for at, call in steps
        for fault in faults_of(call)
        for lasting in (False, True)
    ]


async def fail_all(kind: str, folder: Path, *, first: int = 0, every: int) -> int:
    struck, wrong = 0, []
    with mock.patch.object(stream, "SEAL_BYTES", 1), old_things_left_alone():
        all_of_them = trials(await Story(kind, folder / "good").steps())
        for number, trial in enumerate(all_of_them[first::every]):
            place = folder / str(number)
            try:
                struck += await Story(kind, place).attempt(trial)
            except Exception as error:
                wrong.append(f"{trial}: {error!r}")
            else:
                shutil.rmtree(place)
    assert not wrong, f"{len(wrong)} trials, of which the first: " + "\n".join(wrong[:20])
    return struck


@contextmanager
def old_things_left_alone() -> Iterator[None]:
    """What was there before is not searched for open files after each trial, which costs more
    than the trial."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@pytest.mark.parametrize(("kind", "every"), [("parquet", 397), ("duckdb", 577)])
async def test_a_step_of_a_run_fails_at_the_destination(
    kind: str, every: int, tmp_path: Path
) -> None:
    """A few of all that the slow proof below goes through."""
    assert await fail_all(kind, tmp_path, every=every) > 0


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", KINDS)
async def test_each_step_of_a_run_fails_at_the_destination(
    kind: str, part: int, tmp_path: Path
) -> None:
    assert await fail_all(kind, tmp_path, first=part, every=PARTS) > 50
