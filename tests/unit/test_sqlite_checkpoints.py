"""When the log is copied back, how far, and what doubt keeps it from (D2, D6)."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import anyio
import apsw
import pytest

from catalog.clock import ManualClock
from catalog.errors import CannotOpen, Unavailable, Unknown
from catalog.port import new_operation_id
from catalog.records import Batch, Lease
from catalog.sqlite import checkpoints, writer
from catalog.sqlite.backend import SqliteCatalog
from catalog.sqlite.checkpoints import Checkpointer
from catalog.sqlite.database import Location, Tuning, close_in_doubt
from tests.crash.sqlite_disk import FailingDisk
from tests.crash.test_catalog_faults import opened_files
from tests.crash.test_sqlite_power_loss import claim
from tests.patience import PATIENCE

LIMIT = 1 << 30
PASSIVE, NOOP = apsw.SQLITE_CHECKPOINT_PASSIVE, apsw.SQLITE_CHECKPOINT_NOOP


class Idle(Checkpointer):
    """Its thread does nothing, so that what it is asked for can be seen."""

    def _serve(self) -> None:
        pass

    def is_due(self, pages: int) -> bool:
        """Whether a log of so many pages asks for a checkpoint."""
        self._wake.clear()
        self.wal_grew(pages)
        return self._wake.is_set()


class Copies:
    """In the place of the writer's connection: the kinds of checkpoint asked of it."""

    def __init__(self) -> None:
        self.modes: list[int] = []

    def wal_checkpoint(self, mode: int) -> None:
        self.modes.append(mode)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[apsw.Connection]:
    location = Location.of(tmp_path / "c.db", Tuning())
    db = location.open_writer(0)
    yield db
    db.close()


@pytest.fixture
def idle(db: apsw.Connection, tmp_path: Path) -> Iterator[Idle]:
    assert db.pragma("wal_autocheckpoint") == 0
    checkpointer = Idle(
        Location.of(tmp_path / "c.db", Tuning(checkpoint_pages=10, truncate_bytes=1_000_000))
    )
    yield checkpointer
    checkpointer.stop()


def test_one_is_due_each_time_the_log_has_grown_by_so_many_pages(idle: Idle) -> None:
    assert [pages for pages in range(35) if idle.is_due(pages)] == [10, 20, 30]
    # It began anew: what was copied of the old one does not count.
    assert [pages for pages in range(3, 25) if idle.is_due(pages)] == [10, 20]
    assert idle.is_due(45)
    assert not idle.is_due(54)
    assert idle.is_due(55)


def copy_rest(idle: Idle) -> list[int]:
    copies: Any = Copies()
    idle.copy_rest(copies)
    return list(copies.modes)


def test_what_came_while_it_copied_is_copied_by_the_writer_once(
    idle: Idle, db: apsw.Connection
) -> None:
    assert copy_rest(idle) == []
    db.execute("update meta set epoch = 5")
    logged, _ = db.wal_checkpoint(mode=NOOP)
    idle._checkpoint(db)
    assert logged > 0
    assert db.wal_checkpoint(mode=NOOP) == (logged, logged)
    assert copy_rest(idle) == [PASSIVE]
    assert copy_rest(idle) == []


def test_a_log_that_began_anew_has_no_rest(idle: Idle, db: apsw.Connection) -> None:
    idle.wal_grew(20)
    idle._checkpoint(db)
    idle.wal_grew(21)
    assert copy_rest(idle) == [PASSIVE]
    idle._checkpoint(db)
    idle.wal_grew(3)
    assert copy_rest(idle) == []


def test_a_log_that_was_cut_has_no_rest(idle: Idle, db: apsw.Connection) -> None:
    db.execute("begin immediate")
    db.execute("create table big (x)")
    db.execute("insert into big values (zeroblob(1000000))")
    db.execute("commit")
    assert idle._location.wal_bytes() > 1_000_000
    idle._checkpoint(db)
    assert idle._location.wal_bytes() == 0
    assert copy_rest(idle) == []


def test_a_log_is_cut_once_it_is_longer_than_it_may_be(tmp_path: Path, db: apsw.Connection) -> None:
    db.execute("create table big (x)")
    size = Location.of(tmp_path / "c.db", Tuning()).wal_bytes()
    for longest, left in ((size, size), (size - 1, 0)):
        location = Location.of(tmp_path / "c.db", Tuning(truncate_bytes=longest))
        checkpointer = Idle(location)
        checkpointer._checkpoint(db)
        assert location.wal_bytes() == left
        checkpointer.stop()


def test_who_reads_keeps_a_checkpoint_from_cutting_the_log_and_keeps_no_writer_waiting(
    tmp_path: Path, db: apsw.Connection
) -> None:
    """While it waits to cut, nobody can write: so it does not wait as long as a writer would."""
    tuning = Tuning(truncate_bytes=0, busy_seconds=10 * PATIENCE)
    checkpointer = Idle(Location.of(tmp_path / "c.db", tuning))
    reader = apsw.Connection(str(tmp_path / "c.db"))
    reader.execute("begin")
    reader.execute("select * from meta").fetchall()
    db.execute("update meta set epoch = 5")
    assert checkpointer._db is not None
    began = time.monotonic()
    with pytest.raises(apsw.BusyError):
        checkpointer._checkpoint(checkpointer._db)
    assert time.monotonic() - began < PATIENCE
    reader.close()
    checkpointer.stop()


def test_nothing_is_copied_in_doubt(idle: Idle, db: apsw.Connection) -> None:
    idle._checkpoint(db)
    idle.doubt = "why"
    assert copy_rest(idle) == []
    idle.connect()  # there is one already: nothing was read anew
    assert idle.doubt == "why"
    idle.disconnect()
    idle.connect()
    assert idle.doubt == ""


def test_an_error_that_is_no_failed_sync_leaves_no_doubt(idle: Idle, db: apsw.Connection) -> None:
    told: list[str] = []
    idle.on_doubt = lambda: told.append(idle.doubt)

    class Bad:
        def __init__(self, code: int) -> None:
            self.error = apsw.IOError("disk I/O error")
            self.error.extendedresult = code  # type: ignore[attr-defined]

        def wal_checkpoint(self, mode: int) -> None:
            raise self.error

    for code, doubt in (
        (apsw.SQLITE_IOERR_WRITE, ""),
        (
            apsw.SQLITE_IOERR_FSYNC,
            f"{idle._location.path} could not be synced (disk I/O error)",
        ),
    ):
        idle._checkpoint(db)
        bad: Any = Bad(code)
        idle.copy_rest(bad)
        assert idle.doubt == doubt
    assert told == [idle.doubt]


@pytest.mark.anyio
async def test_no_checkpoint_is_made_in_doubt_or_without_a_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    monkeypatch.setattr(Checkpointer, "_checkpoint", lambda _, db: made.append(db))
    location = Location.of(tmp_path / "c.db", Tuning())
    location.open_writer(0).close()
    checkpointer = Checkpointer(location)

    async def woken() -> None:
        checkpointer._wake.set()
        with anyio.fail_after(PATIENCE):
            while checkpointer._wake.is_set():  # noqa: ASYNC110
                await anyio.sleep(0.001)

    checkpointer.doubt = "why"
    await woken()
    checkpointer.disconnect()
    await woken()
    await woken()  # it lives
    assert made == []
    checkpointer.connect()
    await woken()
    with anyio.fail_after(PATIENCE):
        while not made:  # noqa: ASYNC110
            await anyio.sleep(0.001)
    checkpointer.stop()


def test_nothing_is_copied_between_a_failed_sync_and_the_word_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another checkpoint would call copied what was lost, and the log would write over it (D2)."""
    failed, told = threading.Event(), threading.Event()

    def tells_late(_: apsw.Error) -> bool:
        failed.set()
        return told.wait(PATIENCE)

    def fails(_: Checkpointer, db: apsw.Connection) -> None:
        raise apsw.IOError

    monkeypatch.setattr(checkpoints, "sync_failed", tells_late)
    monkeypatch.setattr(Checkpointer, "_checkpoint", fails)
    location = Location.of(tmp_path / "c.db", Tuning())
    location.open_writer(0).close()
    checkpointer, db = Checkpointer(location), Mock(spec=apsw.Connection)
    checkpointer._rest_is_due = True
    checkpointer._wake.set()
    assert failed.wait(PATIENCE)
    checkpointer.copy_rest(db)
    told.set()
    with checkpointer.at_rest():
        assert checkpointer.doubt
    checkpointer.copy_rest(db)
    db.wal_checkpoint.assert_not_called()
    checkpointer.stop()


def test_each_connection_is_set_up_as_it_must_be(tmp_path: Path) -> None:
    location = Location.of(tmp_path / "c.db", Tuning(busy_seconds=1.5))
    location.open_writer(0).close()
    for for_loop, cache, wait in ((False, -32 * 1024, 1500), (True, -8 * 1024, 0)):
        db = location.connect(for_loop=for_loop)
        found = {
            name: db.pragma(name)
            for name in (
                *("synchronous", "fullfsync", "wal_autocheckpoint", "mmap_size", "temp_store"),
                *("cache_size", "busy_timeout", "query_only"),
            )
        }
        assert found == {
            "synchronous": 2,
            "fullfsync": 1,
            "wal_autocheckpoint": 0,
            "mmap_size": 0,
            "temp_store": 2,
            "cache_size": cache,
            "busy_timeout": wait,
            "query_only": int(for_loop),
        }
        assert db.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, -1) == 1
        # The log too: later the path may lead elsewhere.
        assert str(tmp_path / "c.db-wal") in opened_files(tmp_path)
        db.close()


@pytest.mark.anyio
async def test_of_the_connections_that_read_the_loops_own_never_waits(tmp_path: Path) -> None:
    catalog = await SqliteCatalog.open(tmp_path / "c.db", ManualClock(), LIMIT)
    near, far = catalog._readers.near.db, catalog._readers._far.db
    assert (near.pragma("busy_timeout"), near.pragma("query_only")) == (0, 1)
    assert far.pragma("busy_timeout") == 5000
    await catalog.aclose()


def test_who_closes_in_doubt_copies_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    db = Location.of(path, Tuning()).open_writer(0)
    db.execute("update meta set epoch = 5")
    before = path.read_bytes(), (tmp_path / "c.db-wal").read_bytes()
    close_in_doubt(db)
    assert (path.read_bytes(), (tmp_path / "c.db-wal").read_bytes()) == before


def test_where_there_is_no_catalog_connecting_makes_none(tmp_path: Path) -> None:
    with pytest.raises(CannotOpen, match="cannot be opened for writing"):
        Location.of(tmp_path / "c.db", Tuning()).connect()
    assert list(tmp_path.iterdir()) == []


# -- with a catalog ------------------------------------------------------------------------------


async def answered(catalog: SqliteCatalog, lease: Any, seq: int) -> None:
    """Send it until it is done, in whatever state the disk is."""
    op = new_operation_id()
    with anyio.fail_after(PATIENCE):
        while True:
            try:
                await catalog.commit(op, lease, [Batch("s", seq, "x" * 9_000)], {"s": seq})
            except (Unknown, Unavailable):
                await anyio.sleep(0.01)
            else:
                return


async def on_failing_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch, **tuning: int
) -> tuple[Path, FailingDisk, SqliteCatalog, Lease]:
    """A catalog that waits for nobody long, and a lease."""
    monkeypatch.setattr(writer, "_RETRY_SECONDS", 0.01)
    path, disk = folder / "c.db", FailingDisk()
    how = Tuning(vfs=disk.name, busy_seconds=0.05, **tuning)
    catalog = await SqliteCatalog.open(path, ManualClock(), LIMIT, how)
    return path, disk, catalog, await claim(catalog, "p")


async def half_copied(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, FailingDisk, SqliteCatalog, Lease, apsw.Connection]:
    """The same with a batch in the file and one in the log alone, and another process's
    connection."""
    path, disk, catalog, lease = await on_failing_disk(
        folder, monkeypatch, checkpoint_pages=1_000_000
    )
    await answered(catalog, lease, 0)
    other = apsw.Connection(str(path), vfs=disk.name)
    other.execute("begin")
    other.execute("select * from meta").fetchall()  # so the log goes on, and does not begin anew
    third = apsw.Connection(str(path), vfs=disk.name)
    third.execute("select * from meta").fetchall()
    assert third.wal_checkpoint(mode=PASSIVE)[1] > 0
    third.close()
    await answered(catalog, lease, 1)
    other.execute("commit")
    return path, disk, catalog, lease, other


@pytest.mark.anyio
async def test_a_recovery_that_could_not_sync_what_it_copied_says_what_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, disk, catalog, lease, other = await half_copied(tmp_path, monkeypatch)
    to_fail = [f"{path}-wal", str(path)]

    def fails(name: str) -> bool:
        if name not in to_fail[:1]:
            return False
        to_fail.pop(0)
        return True

    disk.fails = fails
    with pytest.raises(Unknown):
        await catalog.commit(new_operation_id(), lease, [Batch("s", 2, "r")], {"s": 2})
    with anyio.fail_after(PATIENCE):
        while "another process has it open" not in (await catalog.stats()).last_error:  # noqa: ASYNC110
            await anyio.sleep(0.001)
    assert (await catalog.stats()).last_error == (
        f"{path} cannot be recovered: it could not be synced (the disk did not take it), and "
        "another process has it open: end that one"
    )
    other.close()
    await answered(catalog, lease, 2)
    assert (await catalog.check()).problems == ()
    await catalog.aclose()


@pytest.mark.anyio
async def test_while_another_process_has_the_log_it_is_not_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shared memory counts pages as copied that a failed sync may have lost."""
    path, disk, catalog, lease, other = await half_copied(tmp_path, monkeypatch)
    disk.fails = partial(_once, [], str(path))
    catalog._checkpointer._wake.set()
    with anyio.fail_after(PATIENCE):
        while "another process has it open" not in (await catalog.stats()).last_error:  # noqa: ASYNC110
            await anyio.sleep(0.001)
    assert (await catalog.stats()).last_error == (
        f"{path} cannot be recovered: {path} could not be synced (the disk did not take it), and "
        "another process has it open: end that one"
    )
    with pytest.raises(Unavailable, match="another process has it open: end that one"):
        await catalog.commit(new_operation_id(), lease, [Batch("s", 2, "r")], {"s": 2})
    assert not await catalog.wait_changed(1 << 40, 0.01)
    assert (await catalog.stats()).last_error.endswith("another process has it open: end that one")
    other.close()
    await answered(catalog, lease, 2)
    assert (await catalog.stats()).last_error == ""
    assert (await catalog.check()).problems == ()
    await catalog.aclose()


def _once(failed: list[str], what: str, path: str) -> bool:
    if failed or path != what:
        return False
    failed.append(path)
    return True


@pytest.mark.anyio
async def test_a_recovery_waits_for_who_reads_an_older_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, disk, catalog, lease = await on_failing_disk(tmp_path, monkeypatch)
    other = apsw.Connection(str(path))
    other.execute("begin")
    other.execute("select * from meta").fetchall()
    await answered(catalog, lease, 0)
    failed: list[str] = []
    disk.fails = partial(_once, failed, f"{path}-wal")
    with pytest.raises(Unknown, match="cannot be read back"):
        await catalog.commit(new_operation_id(), lease, [Batch("s", 1, "r")], {})
    assert "cannot be recovered" in (await catalog.stats()).last_error
    other.close()
    await answered(catalog, lease, 1)
    assert (await catalog.stats()).last_error == ""
    await catalog.aclose()


@pytest.mark.anyio
async def test_a_writer_without_a_file_lives_and_ends(tmp_path: Path) -> None:
    """Also while the rest of a checkpoint is due, and when it is closed before it recovers."""
    path, disk = tmp_path / "c.db", FailingDisk()
    catalog = await SqliteCatalog.open(path, ManualClock(), LIMIT, Tuning(vfs=disk.name))
    lease = await claim(catalog, "p")
    disk.fails = lambda _path: True
    catalog._checkpointer._rest_is_due = True
    for _ in range(2):
        with pytest.raises((Unknown, Unavailable)):
            await catalog.commit(new_operation_id(), lease, [Batch("s", 0, "r")], {})
    catalog._checkpointer._rest_is_due = True
    with pytest.raises(Unavailable):
        await catalog.commit(new_operation_id(), lease, [Batch("s", 0, "r")], {})
    assert not await catalog.wait_changed(1 << 40, 0.01)
    await catalog.aclose()
    assert [one.name for one in threading.enumerate() if one.name.startswith("catalog")] == []


@pytest.mark.anyio
async def test_a_file_that_was_replaced_is_not_recovered_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there now is another catalog, and no answer comes from it (D6)."""
    monkeypatch.setattr(writer, "_RETRY_SECONDS", 0.01)
    path, disk = tmp_path / "c.db", FailingDisk()
    there = await SqliteCatalog.open(tmp_path / "other.db", ManualClock(), LIMIT)
    await claim(there, "other")
    await there.aclose()
    catalog = await SqliteCatalog.open(path, ManualClock(), LIMIT, Tuning(vfs=disk.name))
    lease = await claim(catalog, "p")
    disk.fails = lambda _path: True
    with pytest.raises(Unknown):
        await catalog.commit(new_operation_id(), lease, [Batch("s", 0, "r")], {})
    (tmp_path / "other.db").rename(path)
    disk.fails = lambda _path: False
    with anyio.fail_after(PATIENCE):
        while "was replaced or removed" not in (await catalog.stats()).last_error:  # noqa: ASYNC110
            await anyio.sleep(0.001)
    await anyio.sleep(0.05)
    with pytest.raises(Unavailable, match=r"cannot be recovered.*was replaced or removed"):
        await catalog.pipeline("other")
    await catalog.aclose()


@pytest.mark.anyio
async def test_a_doubt_that_comes_with_the_closing_keeps_the_log(tmp_path: Path) -> None:
    """The checkpoint that was under way fails when the writer has gone already."""
    path, disk = tmp_path / "c.db", FailingDisk()
    catalog = await SqliteCatalog.open(path, ManualClock(), LIMIT, Tuning(vfs=disk.name))
    await claim(catalog, "p")
    failing = threading.Event()

    def fails(name: str) -> bool:
        if name != str(path) or failing.is_set():
            return False
        failing.set()
        catalog._writer.join()
        return True

    disk.fails = fails
    catalog._checkpointer._wake.set()
    with anyio.fail_after(PATIENCE):
        while not failing.is_set():  # noqa: ASYNC110
            await anyio.sleep(0.001)
    log = (tmp_path / "c.db-wal").read_bytes()
    await catalog.aclose()
    assert (tmp_path / "c.db-wal").read_bytes() == log
    catalog = await SqliteCatalog.open(path, ManualClock(), LIMIT)
    assert (await catalog.pipeline("p")).holder
    await catalog.aclose()


@pytest.mark.anyio
async def test_closing_is_not_cut_short_by_a_cancellation(tmp_path: Path) -> None:
    catalog = await SqliteCatalog.open(tmp_path / "c.db", ManualClock(), LIMIT)
    await claim(catalog, "p")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await catalog.aclose()
    assert os.listdir(tmp_path) == ["c.db"]  # noqa: PTH208
    assert [one.name for one in threading.enumerate() if one.name.startswith("catalog")] == []
