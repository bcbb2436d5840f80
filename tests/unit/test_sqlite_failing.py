"""What the SQLite catalog's writer meets: who is told what, and that it goes on (D1, D2, D5)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import apsw
import pytest

from catalog.clock import ManualClock
from catalog.errors import Conflict, Full, Unavailable, Unknown
from catalog.port import new_operation_id as op
from catalog.records import Batch, Lease, Pause, PipelineState
from catalog.sqlite import writer
from catalog.sqlite.backend import SqliteCatalog
from catalog.sqlite.database import Location, Tuning
from catalog.sqlite.operations import Operations
from catalog.sqlite.queries import SQL
from catalog.sqlite.writer import Writer
from tests.crash.sqlite_disk import FailingDisk
from tests.crash.test_sqlite_power_loss import claim
from tests.patience import PATIENCE
from tests.sqlite_kit import begun, fail_half_way

pytestmark = pytest.mark.anyio
LIMIT = 1 << 30


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c.db"


@pytest.fixture
async def catalog(path: Path) -> AsyncIterator[SqliteCatalog]:
    catalog = await SqliteCatalog.open(path, ManualClock(), LIMIT)
    yield catalog
    await catalog.aclose()


class Failing:
    """The writer's statements that begin so fail, ``times`` of them, until it opens the file
    anew."""

    def __init__(
        self, catalog: SqliteCatalog, statement: str, error: Exception, times: int = 1000
    ) -> None:
        self._statement, self._error, self._left = statement, error, times
        db = catalog._writer._db
        assert db is not None
        db.exec_trace = self._met
        self.db = db

    def _met(self, _cursor: object, sql: str, _bindings: object) -> bool:
        if sql.startswith(self._statement) and self._left:
            self._left -= 1
            raise self._error
        return True


async def pause(catalog: SqliteCatalog, name: str = "p") -> None:
    await catalog.edit(op(), "ann", "", Pause(name))


async def commit(catalog: SqliteCatalog, lease: Lease, follows: int = 0) -> None:
    await catalog.commit(op(), lease, [Batch("s", follows, "r", rows=1)], {})


async def names(catalog: SqliteCatalog) -> list[str]:
    return [state.name for state in await catalog.changed(0)]


async def test_an_error_from_begin_is_said_and_got_over(catalog: SqliteCatalog, path: Path) -> None:
    Failing(catalog, "begin", apsw.IOError("disk I/O error"))
    with pytest.raises(Unavailable) as caught:
        await pause(catalog)
    assert str(caught.value) == f"{path}: disk I/O error"
    assert (await catalog.stats()).last_error == f"{path}: disk I/O error"
    await pause(catalog, "q")
    assert (await catalog.stats()).last_error == ""
    assert await names(catalog) == ["q"]


async def test_an_error_from_rollback_is_said_and_got_over(
    catalog: SqliteCatalog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(self: Operations, *_: object) -> None:
        self._tables.write_pipeline(PipelineState("x", version=1, change=99))
        raise ZeroDivisionError

    Failing(catalog, "rollback", apsw.IOError("disk I/O error"))
    with monkeypatch.context() as patched:
        patched.setattr(Operations, "edit", faulty)
        with pytest.raises(ZeroDivisionError):
            await pause(catalog)
    assert (await catalog.stats()).last_error == f"{path}: disk I/O error"
    await pause(catalog, "q")
    assert await names(catalog) == ["q"]


FULL = (
    "{} has no room left (its ceiling is 1073741824 bytes); nothing is lost. Raise "
    "`catalog_limit`, keep runs for a shorter time in [retention], or make room on the disk"
)
ROW = (
    "{} holds a row that cannot be understood (KeyError: 'k'): it is damaged, or was written by "
    "something else; `catalog check` looks for more, a backup replaces it"
)
WORDS = [
    (apsw.IOError("disk I/O error"), Unavailable, "{}: disk I/O error"),
    (apsw.FullError("database or disk is full"), Full, FULL),
    (KeyError("k"), Unavailable, ROW),
]


@pytest.mark.parametrize(("error", "kind", "words"), WORDS)
async def test_what_a_commit_meets_when_it_is_judged_is_said(
    catalog: SqliteCatalog, path: Path, error: Exception, kind: type[Exception], words: str
) -> None:
    lease = await claim(catalog, "p")
    failing = Failing(catalog, SQL["standing"], error)
    with pytest.raises(kind) as caught:
        await commit(catalog, lease)
    assert str(caught.value) == words.format(path)
    said = (await catalog.stats()).last_error
    assert said == (words.format(path) if isinstance(error, apsw.IOError) else "")
    failing.db.exec_trace = None
    await commit(catalog, lease)
    assert (await catalog.stats()).last_error == ""
    assert (await catalog.pipeline("p")).rows == 1


@pytest.mark.parametrize(("error", "kind", "words"), WORDS)
async def test_what_an_edit_meets_is_said(
    catalog: SqliteCatalog, path: Path, error: Exception, kind: type[Exception], words: str
) -> None:
    failing = Failing(catalog, SQL["pipeline"], error)
    with pytest.raises(kind) as caught:
        await pause(catalog)
    assert str(caught.value) == words.format(path)
    failing.db.exec_trace = None
    await pause(catalog, "q")
    assert await names(catalog) == ["q"]


async def test_a_damaged_row_is_named_to_whose_commit_meets_it(
    catalog: SqliteCatalog, path: Path
) -> None:
    leases = [await claim(catalog, name) for name in "abc"]
    for lease in leases:
        await commit(catalog, lease)
    other = apsw.Connection(str(path))
    other.execute("update streams set hold = 'none' where pipeline = 'b'")
    other.close()
    said: list[str] = []

    async def tried(lease: Lease) -> None:
        try:
            await commit(catalog, lease, 1)
        except Unavailable as error:
            said.append(str(error))

    async with anyio.create_task_group() as tasks:
        for lease in leases:
            tasks.start_soon(tried, lease)
    (words,) = said
    assert words.startswith(f"{path} holds a row that cannot be understood (DecodeError: ")
    assert [(await catalog.pipeline(name)).rows for name in "abc"] == [2, 1, 2]


@pytest.mark.parametrize("savepoints", ["work", "fail"])
async def test_whose_operation_fails_half_way_shares_its_transaction_or_has_one_of_its_own(
    catalog: SqliteCatalog, monkeypatch: pytest.MonkeyPatch, savepoints: str
) -> None:
    fail_half_way(monkeypatch, "bad")
    if savepoints == "fail":
        Failing(catalog, "release", apsw.IOError("disk I/O error"))
    faults: list[str] = []

    async def tried(name: str) -> None:
        try:
            await pause(catalog, name)
        except ZeroDivisionError:
            faults.append(name)

    async with anyio.create_task_group() as tasks:
        for name in ("a", "b", "bad", "c"):
            tasks.start_soon(tried, name)
    assert faults == ["bad"]
    assert await names(catalog) == ["a", "b", "c"]
    stats = await catalog.stats()
    assert (stats.last_error, stats.writes) == ("", 3)
    assert stats.groups == (1 if savepoints == "work" else 3)


async def answers_of(catalog: SqliteCatalog, lease: Lease) -> dict[str, str]:
    """What a commit that is refused and an edit hear that share a transaction."""
    heard: dict[str, str] = {}

    async def tried(name: str, asked: Any) -> None:
        try:
            await asked
        except (Conflict, Unknown) as error:
            heard[name] = f"{type(error).__name__}: {error}"

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tried, "commit", commit(catalog, lease, 7))
        tasks.start_soon(tried, "edit", pause(catalog, "q"))
    return heard


async def test_a_refusal_stays_one_whatever_becomes_of_its_group(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FailingDisk()
    catalog = await SqliteCatalog.open(path, ManualClock(), LIMIT, Tuning(vfs=disk.name))
    lease = await claim(catalog, "p")
    with monkeypatch.context() as faulty:
        faulty.setattr(Writer, "_commit", lambda *_, **__: 1 / 0)
        heard = await answers_of(catalog, lease)
    fault = f"{path}: a fault of this program, ZeroDivisionError('division by zero')"
    assert heard["edit"] == f"Unknown: {fault}: it may have happened"
    assert heard["commit"].startswith("Conflict: ")
    assert (await catalog.stats()).last_error == fault
    await pause(catalog)
    disk.fails = lambda _path: True
    heard = await answers_of(catalog, lease)
    assert heard["edit"].startswith("Unknown: ")
    assert heard["commit"].startswith("Conflict: ")
    disk.fails = lambda _path: False
    await catalog.aclose()


async def test_a_look_at_others_changes_that_fails_is_made_again(
    catalog: SqliteCatalog, path: Path
) -> None:
    others = await SqliteCatalog.open(path, ManualClock(), LIMIT)
    Failing(catalog, SQL["last_change"], apsw.IOError("disk I/O error"), times=1)
    await pause(others)
    assert await catalog.wait_changed(0, PATIENCE)
    await others.aclose()


async def test_looks_at_others_changes_are_no_groups_and_not_many(
    catalog: SqliteCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, look = [], Writer._look

    def counted(self: Writer) -> int:
        looks.append(1)
        return look(self)

    monkeypatch.setattr(Writer, "_look", counted)
    await pause(catalog)
    assert not await catalog.wait_changed(0, 0.25)  # its own change is none
    assert 1 <= len(looks) <= 4
    assert (await catalog.stats()).groups == 1


async def test_a_wait_on_a_closed_catalog_says_what_was_known(path: Path) -> None:
    catalog = await SqliteCatalog.open(path, ManualClock(), LIMIT)
    others = await SqliteCatalog.open(path, ManualClock(), LIMIT)
    await pause(others)
    assert await catalog.wait_changed(0, PATIENCE)
    for each in (catalog, others, catalog):  # also twice
        await each.aclose()
    assert await catalog.wait_changed(0, PATIENCE)
    assert not await catalog.wait_changed(1, 0.01)


async def test_who_gave_up_waiting_takes_nobody_else_along(
    catalog: SqliteCatalog, path: Path
) -> None:
    others = await SqliteCatalog.open(path, ManualClock(), LIMIT)
    await pause(others)
    gate = apsw.Connection(str(path))
    gate.execute("begin immediate")
    heard: list[bool] = []

    async def wait() -> None:
        heard.append(await catalog.wait_changed(0, PATIENCE))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pause, catalog, "q")  # for which the writer waits
        await anyio.lowlevel.checkpoint()
        await begun(catalog)
        with anyio.move_on_after(0.01):
            await catalog.wait_changed(0, PATIENCE)
        tasks.start_soon(wait)
        await anyio.lowlevel.checkpoint()
        gate.execute("rollback")
    gate.close()
    assert heard == [True]
    await others.aclose()


async def test_a_catalog_that_has_nothing_to_do_leaves_its_file_open(
    catalog: SqliteCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_RETRY_SECONDS", 0.001)
    opened: list[Location] = []
    connect = Location.connect

    def counted(self: Location, *, for_loop: bool = False) -> apsw.Connection:
        opened.append(self)
        return connect(self, for_loop=for_loop)

    monkeypatch.setattr(Location, "connect", counted)
    await pause(catalog)
    await anyio.sleep(0.05)
    await pause(catalog)
    assert opened == []


async def test_before_anything_could_be_read_the_sizes_are_zero_and_then_those_known_last(
    path: Path,
) -> None:
    disk = FailingDisk()
    catalog = await SqliteCatalog.open(path, ManualClock(), LIMIT, Tuning(vfs=disk.name))

    async def cut_off() -> None:
        disk.fails = lambda _path: True
        with pytest.raises(Unknown):
            await pause(catalog)

    await cut_off()
    stats = await catalog.stats()
    assert (stats.size_bytes, stats.pipelines, stats.open_runs) == (0, 0, 0)
    disk.fails = lambda _path: False
    await claim(catalog, "q")
    before = await catalog.stats()
    await cut_off()
    stats = await catalog.stats()
    assert "cannot be recovered" in stats.last_error
    for name in ("size_bytes", "pipelines", "open_runs"):
        assert getattr(stats, name) == getattr(before, name) > 0
    disk.fails = lambda _path: False
    await catalog.aclose()
