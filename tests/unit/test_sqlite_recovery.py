"""The SQLite catalog after a step of its own failed: what is answered, and that it goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import apsw
import pytest

from catalog.clock import ManualClock
from catalog.conformance.kit import cursor
from catalog.errors import BadRequest, CannotOpen, Full, Unavailable, Unknown
from catalog.port import new_operation_id
from catalog.records import (
    Batch,
    Candidate,
    Claimed,
    Finish,
    Outcome,
    Pause,
    Retention,
    RunQuery,
    Trigger,
    TriggerKind,
)
from catalog.sqlite import backend, writer
from catalog.sqlite.backend import SqliteCatalog
from catalog.sqlite.checkpoints import Checkpointer
from catalog.sqlite.database import Tuning
from catalog.sqlite.readers import Readers
from catalog.sqlite.tables import Tables
from catalog.sqlite.writer import Writer
from tests.crash.sqlite_disk import FailingDisk
from tests.crash.test_catalog_faults import opened_files
from tests.crash.test_sqlite_errors import fail
from tests.crash.test_sqlite_power_loss import HOLDER, claim
from tests.patience import PATIENCE

pytestmark = pytest.mark.anyio
LIMIT = 1 << 30


@pytest.fixture
def disk() -> FailingDisk:
    return FailingDisk()


@pytest.fixture
async def catalog(tmp_path: Path, disk: FailingDisk) -> AsyncIterator[SqliteCatalog]:
    tuning = Tuning(vfs=disk.name)
    catalog = await SqliteCatalog.open(tmp_path / "c.db", ManualClock(), LIMIT, tuning)
    yield catalog
    await catalog.aclose()


async def pause(catalog: SqliteCatalog, op: str = "", name: str = "p") -> None:
    await catalog.edit(op or new_operation_id(), "ann", "", Pause(name))


async def test_what_cannot_be_read_back_may_have_happened(
    catalog: SqliteCatalog, disk: FailingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file was recovered, and then the row that would tell could not be read."""

    def away(*_: Any) -> None:
        raise apsw.IOError("disk I/O error")

    same = new_operation_id()
    fail(disk, 1)
    with monkeypatch.context() as faulty:
        faulty.setattr(Tables, "operation", away)
        with pytest.raises(Unknown, match="cannot be read back: it may have happened") as caught:
            await pause(catalog, same)
        assert "disk I/O error" in (await catalog.stats()).last_error
    assert "fault of this program" not in str(caught.value)
    await pause(catalog, same)
    assert len(await catalog.edits()) == 1
    assert (await catalog.stats()).last_error == ""


async def test_what_failed_twice_and_did_not_happen_is_refused(
    catalog: SqliteCatalog, disk: FailingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is recovered each time, and the operation is not in it."""
    commit, give_up = Writer._commit, Writer._give_up

    def broken(*args: Any, **options: Any) -> None:
        disk.fails = lambda path: path.endswith("-wal")
        commit(*args, **options)

    def well(*args: Any) -> None:
        disk.fails = lambda _path: False
        give_up(*args)

    with monkeypatch.context() as faulty:
        faulty.setattr(Writer, "_commit", broken)
        faulty.setattr(Writer, "_give_up", well)
        with pytest.raises(Unavailable) as caught:
            await pause(catalog)
    words = (
        "c.db: COMMIT answered with an error (the disk did not take it), twice: it did not happen"
    )
    assert str(caught.value).endswith(f"/{words}")
    assert await catalog.edits() == ()
    await pause(catalog)
    assert len(await catalog.edits()) == 1


async def test_a_refusal_stays_one_when_nobody_can_look_whether_it_was_sent_before(
    catalog: SqliteCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise apsw.FullError("database or disk is full")

    def away(*_: Any) -> None:
        raise apsw.IOError("disk I/O error")

    with monkeypatch.context() as faulty:
        faulty.setattr(Tables, "write_operation", refuse)
        faulty.setattr(Tables, "operation", away)
        with pytest.raises((Full, Unavailable)) as caught:
            await pause(catalog)
    assert "fault of this program" not in str(caught.value)
    assert "fault of this program" not in (await catalog.stats()).last_error
    await pause(catalog)
    assert len(await catalog.edits()) == 1


async def test_a_recovery_that_readers_could_not_follow_is_tried_again_unasked(
    catalog: SqliteCatalog, disk: FailingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_RETRY_SECONDS", 0.01)
    resume, same = Readers.resume, new_operation_id()

    def away(self: Readers, why_not: str) -> None:
        if not why_not:
            raise Unavailable("no reader can be opened")
        resume(self, why_not)

    fail(disk, 1)
    with monkeypatch.context() as faulty:
        faulty.setattr(Readers, "resume", away)
        with pytest.raises(Unknown, match="cannot be read back"):
            await pause(catalog, same)
        with pytest.raises(Unavailable, match="no reader can be opened"):
            await catalog.pipeline("p")
    with anyio.fail_after(PATIENCE):
        while (await catalog.stats()).last_error:  # noqa: ASYNC110
            await anyio.sleep(0.005)
    await pause(catalog, same)
    assert len(await catalog.edits()) == 1


async def test_nothing_stays_open_of_a_catalog_that_could_not_be_opened_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise apsw.CantOpenError("unable to open database file")

    for name in ("Readers", "Checkpointer", "Writer"):
        path = tmp_path / name / "c.db"
        with monkeypatch.context() as faulty:
            faulty.setattr(backend, name, away)
            with pytest.raises(CannotOpen, match=f"^{path} cannot be opened.*unable to open"):
                await SqliteCatalog.open(path, ManualClock(), LIMIT)
        assert opened_files(path.parent) == []
        assert [one.name for one in threading.enumerate() if one.name.startswith("catalog")] == []


async def test_a_commit_whose_answer_went_before_its_operations_id_is_refused_when_sent_again(
    catalog: SqliteCatalog,
) -> None:
    """Retention stopped between the two, as it may after each row."""
    same, lease = new_operation_id(), await claim(catalog, "p")
    batch = Batch("s", 0, "r")
    await catalog.commit(same, lease, [batch], {})
    await catalog.commit(new_operation_id(), lease, [Batch("s", 1, "r")], {"s": 1})
    done = Finish(Outcome.SUCCEEDED, "done", published=(("s", 2),))
    await catalog.finish(new_operation_id(), lease, done)
    version = (await catalog.pipeline("p")).version
    candidate = Candidate("p", version, Trigger(TriggerKind.TICK, tick=2), "due")
    (again,) = await catalog.claim(new_operation_id(), HOLDER, [candidate], ttl=60, limits={})
    assert isinstance(again, Claimed)
    await catalog.finish(new_operation_id(), again.lease, Finish(Outcome.FAILED, "why"))
    for _ in ("the run", "its first commit"):
        assert await catalog.retain(new_operation_id(), Retention(1 << 60, 1 << 60, limit=1)) == 1
    assert [row.seq for row in await catalog.commits("p", "s")] == [2]
    with pytest.raises(BadRequest, match="so long ago that its answer is gone"):
        await catalog.commit(same, lease, [batch], {})


async def test_a_cursor_that_cannot_be_read_inline_is_read_all_the_same(
    catalog: SqliteCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, there = await claim(catalog, "p"), cursor(7)
    await catalog.commit(new_operation_id(), lease, [Batch("s", 0, "r", cursor=there)], {})

    def locked(*_: Any) -> None:
        raise apsw.BusyError("database is locked")

    monkeypatch.setattr(catalog._readers.near, "run_sql", locked)
    assert await catalog.cursor("p", "s") == there
    assert await catalog.cursor("p", "none") is None


async def test_a_recovery_waits_for_a_read_that_the_loop_is_in_the_midst_of(
    catalog: SqliteCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_RETRY_SECONDS", 0.001)
    await pause(catalog)
    near = catalog._readers.near.db

    def midst(*_: object) -> bool:
        near.exec_trace = None
        catalog._checkpointer.doubt = "why"
        catalog._checkpointer.on_doubt()
        deadline = time.monotonic() + PATIENCE
        while not catalog._readers._lock.locked():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(0.02)
        return True

    near.exec_trace = midst
    assert (await catalog.pipeline("p")).paused
    with anyio.fail_after(PATIENCE):
        while catalog._checkpointer.doubt:  # noqa: ASYNC110
            await anyio.sleep(0.001)
    await pause(catalog, "", "q")
    assert len(await catalog.edits()) == 2
    assert (await catalog.stats()).last_error == ""


async def test_reads_that_may_be_long_leave_the_loop_alone(
    catalog: SqliteCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(D3): short ones are done where they are asked for."""
    lease = await claim(catalog, "p")
    await catalog.finish(new_operation_id(), lease, Finish(Outcome.FAILED, "why"))
    by: list[threading.Thread] = []
    for name in ("runs", "commits", "changed", "files", "edits", "sentences", "streams", "counts"):
        real = getattr(Tables, name)

        def read(self: Tables, *args: Any, _real: Any = real) -> Any:
            by.append(threading.current_thread())
            return _real(self, *args)

        monkeypatch.setattr(Tables, name, read)
    here = threading.current_thread()
    for short in (
        catalog.streams("p"),
        catalog.runs(RunQuery(limit=100)),
        catalog.commits("p", "s", limit=100),
        catalog.commits("p", unpublished=True),
        catalog.changed(0, 100),
        catalog.files("p", "s", limit=100),
        catalog.edits(limit=100),
    ):
        await short
        assert set(by) == {here}
        by.clear()
    for long in (
        catalog.runs(RunQuery(limit=101)),
        catalog.runs(RunQuery(outcome=Outcome.FAILED)),
        catalog.commits("p", "s", limit=101),
        catalog.commits("p"),
        catalog.changed(0, 101),
        catalog.files("p", "s", limit=101),
        catalog.edits(limit=101),
        catalog.check(),
        catalog.stats(),
    ):
        await long
        assert by
        assert here not in by
        by.clear()


async def test_what_was_written_before_it_was_opened_counts_as_anothers(tmp_path: Path) -> None:
    for _ in ("made", "opened again"):
        catalog = await SqliteCatalog.open(tmp_path / "d.db", ManualClock(), LIMIT)
        await pause(catalog)
        await catalog.aclose()
    catalog = await SqliteCatalog.open(tmp_path / "d.db", ManualClock(), LIMIT)
    assert await catalog.wait_changed(0, PATIENCE)
    await catalog.aclose()


async def test_a_checkpoint_is_made_once_for_each_time_that_one_is_due(
    catalog: SqliteCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    monkeypatch.setattr(Checkpointer, "_checkpoint", lambda _, db: made.append(db))
    catalog._checkpointer._wake.set()
    with anyio.fail_after(PATIENCE):
        while not made:  # noqa: ASYNC110
            await anyio.sleep(0.001)
    for _ in range(20):
        await pause(catalog)
    assert len(made) == 1


async def test_what_waits_behind_commits_of_its_group_is_done_too(
    catalog: SqliteCatalog,
) -> None:
    leases = [await claim(catalog, name) for name in ("a", "b")]
    seen = (await catalog.stats()).groups
    async with anyio.create_task_group() as tasks:
        for number, lease in enumerate(leases):
            batch = Batch("s", 0, "r")
            tasks.start_soon(catalog.commit, new_operation_id(), lease, [batch], {})
            tasks.start_soon(pause, catalog, "", f"p{number}")
    assert (await catalog.stats()).groups == seen + 1
    assert sorted(edit.pipeline for edit in await catalog.edits()) == ["p0", "p1"]
    for name in ("a", "b"):
        assert [row.seq for row in await catalog.commits(name, "s")] == [1]
