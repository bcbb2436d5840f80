"""The writer of the SQLite catalog: groups, cancellation, the ceiling, other processes, the file's
identity (D1, D3, D5, D6, D7, A5)."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import apsw
import pytest

from catalog.clock import ManualClock
from catalog.errors import Conflict, Full, NotFound, SchemaConflict, Unavailable, Unknown
from catalog.port import new_operation_id as op
from catalog.records import (
    Batch,
    CancelRun,
    Candidate,
    Claimed,
    EditAction,
    Finish,
    Holder,
    Lease,
    Outcome,
    Pause,
    Retention,
    RunQuery,
    SchemaVersion,
    StreamResult,
    Trigger,
    TriggerKind,
)
from catalog.sqlite import retaining, writer
from catalog.sqlite.backend import SqliteCatalog
from catalog.sqlite.database import Tuning
from catalog.sqlite.tables import Tables
from catalog.sqlite.writer import Writer
from catalog.sqlite.writes import Write
from tests.patience import PATIENCE
from tests.sqlite_kit import Gate, begun, fail_half_way

pytestmark = pytest.mark.anyio
HOLDER = Holder("h", "host", 1)
LIMIT = 1 << 30
QUICK = Tuning(busy_seconds=0.05)


@asynccontextmanager
async def opened(
    path: Path, limit: int = LIMIT, tuning: Tuning | None = None
) -> AsyncIterator[SqliteCatalog]:
    catalog = await SqliteCatalog.open(path, ManualClock(), limit, tuning)
    try:
        yield catalog
    finally:
        await catalog.aclose()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.db"


async def claim(catalog: SqliteCatalog, *names: str) -> list[Lease]:
    candidates = [Candidate(name, 0, Trigger(TriggerKind.TICK, tick=1), "due") for name in names]
    answers = await catalog.claim(op(), HOLDER, candidates, ttl=60, limits={})
    assert all(isinstance(answer, Claimed) for answer in answers)
    return [answer.lease for answer in answers if isinstance(answer, Claimed)]


async def pause(catalog: SqliteCatalog, name: str, same: str | None = None) -> None:
    await catalog.edit(same or op(), "ann", "", Pause(name))


# -- groups ------------------------------------------------------------------------------------


async def test_what_waits_shares_one_flush_and_one_wake_up(path: Path) -> None:
    async with opened(path) as catalog, anyio.create_task_group() as tasks:
        loop: Any = asyncio.get_running_loop()
        wake, wakes = loop.call_soon_threadsafe, []

        def count(*args: Any, **options: Any) -> Any:
            wakes.append(args)
            return wake(*args, **options)

        with Gate(path):
            tasks.start_soon(pause, catalog, "first")
            await anyio.lowlevel.checkpoint()
            await begun(catalog)
            for number in range(100):
                tasks.start_soon(pause, catalog, f"p{number}")
            await anyio.lowlevel.checkpoint()
            loop.call_soon_threadsafe = count
        with anyio.fail_after(PATIENCE):
            while len(await catalog.changed(0, 100)) < 100:  # noqa: ASYNC110
                await anyio.sleep(0.001)
        await pause(catalog, "last")
        del loop.call_soon_threadsafe
        stats = await catalog.stats()
        assert (stats.writes, stats.groups) == (102, 3)
        assert len(wakes) == 3


async def test_a_group_takes_in_no_more_than_enough(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who came first would wait for all that came while it waited."""
    monkeypatch.setattr(writer, "ENOUGH", 5)
    async with opened(path) as catalog:
        async with anyio.create_task_group() as tasks:
            with Gate(path):
                for number in range(13):
                    tasks.start_soon(pause, catalog, f"p{number}")
                    await anyio.lowlevel.checkpoint()
                    await begun(catalog) if number == 0 else await anyio.lowlevel.checkpoint()
        stats = await catalog.stats()
        assert (stats.writes, stats.groups) == (13, 4)  # 1, 5, 5 and 2


async def test_a_refusal_in_a_group_is_its_callers_alone(path: Path) -> None:
    async with opened(path) as catalog:
        leases = await claim(catalog, *(f"p{number}" for number in range(20)))
        outcomes: dict[str, str] = {}

        async def commit(lease: Lease, follows: int) -> None:
            try:
                await catalog.commit(op(), lease, [Batch("s", follows, "r", rows=1)], {})
                outcomes[lease.pipeline] = "done"
            except Conflict:
                outcomes[lease.pipeline] = "refused"

        async with anyio.create_task_group() as tasks:
            for number, lease in enumerate(leases):
                tasks.start_soon(commit, lease, number % 2)
        for number, lease in enumerate(leases):
            assert outcomes[lease.pipeline] == ("refused" if number % 2 else "done")
            state = await catalog.pipeline(lease.pipeline)
            # A refused commit leaves nothing behind, not even a count.
            assert (state.rows, state.version) == ((0, 1) if number % 2 else (1, 2))
        assert (await catalog.stats()).writes == 11


async def test_one_operation_sent_twice_in_one_group_is_done_once(path: Path) -> None:
    async with opened(path) as catalog:
        (lease,) = await claim(catalog, "p")
        same = op()
        answers: list[Any] = []

        async def commit() -> None:
            answers.append(await catalog.commit(same, lease, [Batch("s", 0, "r", rows=1)], {}))

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(commit)
        assert len({answer[0].seq for answer in answers}) == 1
        assert all(answer == answers[0] for answer in answers)
        assert (await catalog.pipeline("p")).rows == 1


async def test_a_fault_of_the_program_is_its_callers_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_half_way(monkeypatch, "bad")
    async with opened(path) as catalog, anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(pause, catalog, f"p{number}")
        with pytest.raises(ZeroDivisionError):
            await pause(catalog, "bad")
        with pytest.raises(ZeroDivisionError):  # also alone
            await pause(catalog, "bad")
        await pause(catalog, "good")
        assert (await catalog.pipeline("bad")).version == 0
        assert (await catalog.pipeline("x")).version == 0
        assert len(await catalog.changed(0)) == 11


async def test_a_fault_of_the_writer_itself_leaves_open_what_happened_and_is_got_over(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(path) as catalog:
        await pause(catalog, "before")
        with monkeypatch.context() as faulty:
            faulty.setattr(Writer, "_commit", lambda *_, **__: 1 / 0)
            same = op()
            with pytest.raises(Unknown, match="may have happened"):
                await pause(catalog, "p", same)
        assert caplog.messages == ["the catalog's writer failed"]
        assert "ZeroDivisionError" in (await catalog.stats()).last_error
        await pause(catalog, "p", same)
        assert {state.name for state in await catalog.changed(0)} == {"before", "p"}
        assert (await catalog.stats()).last_error == ""


def test_a_loop_that_is_gone_before_the_answer_does_no_harm(path: Path) -> None:
    loop = asyncio.new_event_loop()
    catalog = loop.run_until_complete(SqliteCatalog.open(path, ManualClock(), LIMIT))

    done = loop.create_future()
    with Gate(path):
        write = Write(op(), "edit", lambda do: do.edit("ann", "", Pause("p")), done, grows=True)
        catalog._writer.submit(write)
        loop.close()
    catalog._writer.stop()
    catalog._close()
    db = apsw.Connection(str(path))
    assert db.execute("select name, paused is null from pipelines").fetchall() == [("p", 0)]
    db.close()


async def test_what_cannot_be_stored_is_its_callers_fault_alone(path: Path) -> None:
    async with opened(path) as catalog:
        leases = await claim(catalog, *(f"p{number}" for number in range(10)))
        outcomes: dict[str, str] = {}

        async def commit(lease: Lease) -> None:
            receipt: Any = object() if lease.pipeline == "p4" else "r"
            try:
                await catalog.commit(op(), lease, [Batch("s", 0, receipt)], {})
                outcomes[lease.pipeline] = "done"
            except TypeError:
                outcomes[lease.pipeline] = "refused"

        async with anyio.create_task_group() as tasks:
            for lease in leases:
                tasks.start_soon(commit, lease)
        assert [name for name, outcome in outcomes.items() if outcome == "refused"] == ["p4"]
        assert len(outcomes) == 10
        assert await catalog.streams("p4") == ()
        assert (await catalog.check()).problems == ()


async def test_a_group_of_commits_is_judged_in_order(path: Path) -> None:
    """Each sees what those before it in the group did, and one that is refused changes nothing."""
    async with opened(path) as catalog, anyio.create_task_group() as tasks:
        (lease,) = await claim(catalog, "p")
        schemas = [SchemaVersion(1, "f1", "{}"), SchemaVersion(2, "f2", "{}")]
        batches = [
            Batch("s", 0, "r", rows=1, schema=schemas[0]),
            Batch("s", 1, "r", rows=1, schema=schemas[1]),
            Batch("s", 1, "r", rows=100),  # refused
            Batch("s", 2, "r", rows=1, schema=schemas[1]),
            Batch("s", 3, "r", rows=1, schema=SchemaVersion(2, "f3", "{}")),  # refused
            Batch("s", 3, "r", rows=1),
        ]
        answers: list[str] = []

        async def commit(batch: Batch) -> None:
            try:
                (row,) = await catalog.commit(op(), lease, [batch], {"s": 1})
                answers.append(f"{row.seq} of version {row.schema_version}")
            except (Conflict, SchemaConflict) as error:
                answers.append(type(error).__name__)

        with Gate(path):
            tasks.start_soon(pause, catalog, "first")
            await anyio.lowlevel.checkpoint()
            await begun(catalog)
            for batch in batches:
                tasks.start_soon(commit, batch)
            await anyio.lowlevel.checkpoint()
        with anyio.fail_after(PATIENCE):
            while len(answers) < len(batches):  # noqa: ASYNC110
                await anyio.sleep(0.001)
        assert answers == [
            "1 of version 1",
            "2 of version 2",
            "Conflict",
            "3 of version 2",
            "SchemaConflict",
            "4 of version 2",
        ]
        (stream,) = await catalog.streams("p")
        state, (run,) = await catalog.pipeline("p"), await catalog.runs(RunQuery("p"))
        assert (stream.seq, stream.published, stream.rows) == (4, 1, 4)
        assert (state.rows, run.rows, state.version) == (4, 4, 5)
        assert [row.seq for row in await catalog.commits("p", "s", limit=3)] == [4, 3, 2]
        assert [row.seq for row in await catalog.commits("p", unpublished=True)] == [2, 3, 4]
        assert (await catalog.stats()).groups == 3


async def test_a_batch_published_in_the_group_that_committed_it_has_its_run(path: Path) -> None:
    async with opened(path) as catalog, anyio.create_task_group() as tasks:
        other, lease = await claim(catalog, "q", "p")
        with Gate(path):
            tasks.start_soon(pause, catalog, "first")
            await anyio.lowlevel.checkpoint()
            await begun(catalog)
            tasks.start_soon(catalog.commit, op(), other, [Batch("s", 0, "r")], {})
            for follows, published in ((0, {}), (1, {}), (2, {"s": 1})):
                batches = [Batch("s", follows, "r")]
                tasks.start_soon(catalog.commit, op(), lease, batches, published)
            await anyio.lowlevel.checkpoint()
        with anyio.fail_after(PATIENCE):
            while not (streams := await catalog.streams("p")):  # noqa: ASYNC110
                await anyio.sleep(0.001)
        (stream,) = streams
        assert (stream.seq, stream.published, stream.published_by) == (3, 1, lease.epoch)


# -- cancellation ------------------------------------------------------------------------------


async def test_a_write_that_waits_is_withdrawn_when_its_caller_is_cancelled(path: Path) -> None:
    async with opened(path) as catalog, anyio.create_task_group() as tasks:
        with Gate(path):
            tasks.start_soon(pause, catalog, "begun")
            await anyio.lowlevel.checkpoint()
            await begun(catalog)
            with anyio.move_on_after(0.05) as scope:
                await pause(catalog, "queued")
            assert scope.cancelled_caught
        await pause(catalog, "after")
        assert (await catalog.pipeline("begun")).paused
        assert (await catalog.pipeline("queued")).version == 0


async def test_a_write_that_has_begun_is_waited_for_however_often_it_is_cancelled(
    path: Path,
) -> None:
    async with opened(path) as catalog:
        answers = []

        async def edit() -> None:
            answers.append(await catalog.edit(op(), "ann", "", Pause("p")))

        async with anyio.create_task_group() as tasks:
            with Gate(path):
                tasks.start_soon(edit)
                await anyio.lowlevel.checkpoint()
                await begun(catalog)
                tasks.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.05)
                assert answers == []
        # The caller learned the outcome before its cancellation went on.
        assert [answer.pipeline for answer in answers] == ["p"]
        assert (await catalog.pipeline("p")).paused


@pytest.mark.parametrize("action", [Pause("p"), CancelRun("p")])
@pytest.mark.parametrize("first", ["outcome", "cancellation"])
async def test_an_outcome_and_a_cancellation_that_meet_on_the_loop_lose_neither(
    path: Path, first: str, action: EditAction
) -> None:
    """Both are there before the task has its turn; whichever was first, the outcome is told."""
    async with opened(path) as catalog:
        answers: list[str] = []

        async def edit() -> None:
            try:
                answers.append((await catalog.edit(op(), "ann", "", action)).action)
            except NotFound as error:
                answers.append(error.code)

        task = asyncio.create_task(edit())
        behind = asyncio.create_task(pause(catalog, "q"))
        await anyio.lowlevel.checkpoint()  # asked for
        await anyio.lowlevel.checkpoint()  # handed to the thread
        loop: Any = asyncio.get_running_loop()
        deadline = time.monotonic() + PATIENCE
        while not any("settle" in repr(handle) for handle in tuple(loop._ready)):
            assert time.monotonic() < deadline
            time.sleep(0.001)  # noqa: ASYNC251 - the loop must not come round yet
        if first == "cancellation":
            task.cancel()
        else:
            loop.call_soon(task.cancel)
        with anyio.fail_after(PATIENCE), suppress(asyncio.CancelledError):
            await task
        assert answers == ["pause" if action == Pause("p") else "not_found"]
        with anyio.fail_after(PATIENCE):  # nor does who came with it
            await behind


# -- the ceiling -------------------------------------------------------------------------------


async def test_at_the_ceiling_growing_is_refused_and_the_rest_goes_on(path: Path) -> None:
    limit = 1024 * 1024
    async with opened(path, limit) as catalog:
        (lease,) = await claim(catalog, "p")
        same, follows = op(), 0
        first = await catalog.commit(same, lease, [Batch("s", 0, "r")], {})

        async def grow() -> None:
            nonlocal follows
            while True:
                follows += 1
                batch = Batch("s", follows, "x" * 3000, rows=1)
                await catalog.commit(op(), lease, [batch], {"s": follows})

        with pytest.raises(Full, match=r"catalog_limit.*retention"):
            await grow()
        stats = await catalog.stats()
        assert stats.size_bytes <= stats.limit_bytes == limit
        assert stats.size_bytes < limit - limit // 32  # room is kept for what does not grow
        assert stats.last_error == ""
        (stream,) = await catalog.streams("p")
        assert stream.seq == stream.rows + 1 == follows
        # A second sending is no growth; neither are renewing, finishing and tidying up.
        assert await catalog.commit(same, lease, [Batch("s", 0, "r")], {}) == first
        await catalog.renew(op(), HOLDER, [lease], ttl=60)
        done = Finish(Outcome.FAILED, "full", published=(("s", follows),))
        await catalog.finish(op(), lease, done)
        with pytest.raises(Full):
            await pause(catalog, "q")
        assert (await catalog.check()).problems == ()


async def test_a_group_done_again_one_by_one_keeps_to_the_ceiling_and_to_what_was_answered(
    path: Path,
) -> None:
    """One of it failed when it had already written something, so each has a savepoint."""
    async with opened(path, 1024 * 1024) as catalog, anyio.create_task_group() as tasks:
        bad, good = await claim(catalog, "bad", "good")
        same, follows = op(), 0
        first = await catalog.commit(same, good, [Batch("s", 0, "r")], {})
        with suppress(Full):
            while True:
                follows += 1
                await catalog.commit(op(), good, [Batch("s", follows, "x" * 9000)], {"s": follows})
        heard: dict[str, Any] = {}

        async def hear(name: str, asked: Any) -> None:
            try:
                heard[name] = await asked
            except (Full, TypeError) as error:
                heard[name] = type(error)

        unstorable: Any = object()
        result = StreamResult("s", Outcome.FAILED, "broken")
        with Gate(path):
            for name, asked in (
                (
                    "bad",
                    catalog.finish(op(), bad, Finish(Outcome.FAILED, unstorable, None, (result,))),
                ),
                ("grows", catalog.edit(op(), "ann", "", Pause("q"))),
                ("again", catalog.commit(same, good, [Batch("s", 0, "r")], {})),
                ("good", catalog.finish(op(), good, Finish(Outcome.FAILED, "full"))),
            ):
                tasks.start_soon(hear, name, asked)
            await anyio.lowlevel.checkpoint()
        with anyio.fail_after(PATIENCE):
            while len(heard) < 4:  # noqa: ASYNC110
                await anyio.sleep(0.001)
        assert (heard["bad"], heard["grows"]) == (TypeError, Full)
        assert heard["again"] == first
        assert heard["good"].outcome is Outcome.FAILED
        assert await catalog.streams("bad") == ()
        assert (await catalog.pipeline("bad")).holder == HOLDER.id
        assert (await catalog.pipeline("q")).version == 0
        assert (await catalog.check()).problems == ()


async def test_room_made_by_retention_can_be_used(path: Path) -> None:
    limit = 1024 * 1024
    async with opened(path, limit) as catalog:
        follows = 0

        async def grow() -> None:
            nonlocal follows
            while True:
                version = (await catalog.pipeline("p")).version
                candidate = Candidate("p", version, Trigger(TriggerKind.TICK, tick=1), "due")
                (answer,) = await catalog.claim(op(), HOLDER, [candidate], ttl=60, limits={})
                assert isinstance(answer, Claimed)
                await catalog.commit(op(), answer.lease, [Batch("s", follows, "x" * 9000)], {})
                follows += 1
                done = Finish(Outcome.SUCCEEDED, "", published=(("s", follows),))
                await catalog.finish(op(), answer.lease, done)

        with pytest.raises(Full):
            await grow()
        now = ManualClock().wall_us()
        while await catalog.retain(op(), Retention(now + 1, now + 1)) > 1:
            pass  # until it finds only the operation before it
        await pause(catalog, "q")
        assert len(await catalog.commits("p")) == len(await catalog.runs(RunQuery("p"))) == 1
        assert (await catalog.check()).problems == ()


async def test_runs_go_before_commits_however_many_there_are(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retaining, "_FOUND_AT_ONCE", 2)
    async with opened(path) as catalog:
        for follows in range(5):
            version = (await catalog.pipeline("p")).version
            candidate = Candidate("p", version, Trigger(TriggerKind.TICK, tick=1), "due")
            (answer,) = await catalog.claim(op(), HOLDER, [candidate], ttl=60, limits={})
            assert isinstance(answer, Claimed)
            await catalog.commit(op(), answer.lease, [Batch("s", follows, "r")], {})
            done = Finish(Outcome.SUCCEEDED, "", published=(("s", follows + 1),))
            await catalog.finish(op(), answer.lease, done)
        now = ManualClock().wall_us() + 1
        left = []
        for _ in range(8):
            assert await catalog.retain(op(), Retention(now, now, limit=1)) == 1
            left.append((len(await catalog.runs(RunQuery("p"))), len(await catalog.commits("p"))))
        assert left == [(runs, 5) for runs in (4, 3, 2, 1)] + [(1, n) for n in (4, 3, 2, 1)]


async def test_retention_goes_in_short_transactions_until_all_is_done(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path) as catalog:
        names = [f"p{number}" for number in range(70)]
        for follows in range(3):
            states = {state.name: state.version for state in await catalog.changed(0)}
            trigger = Trigger(TriggerKind.TICK, tick=1)
            candidates = [Candidate(name, states.get(name, 0), trigger, "due") for name in names]
            answers = await catalog.claim(op(), HOLDER, candidates, ttl=60, limits={})
            for answer in answers:
                assert isinstance(answer, Claimed)
                await catalog.commit(op(), answer.lease, [Batch("s", follows, "r")], {})
                done = Finish(Outcome.SUCCEEDED, "", published=(("s", follows + 1),))
                await catalog.finish(op(), answer.lease, done)
        now = ManualClock().wall_us()
        keep = Retention(now + 1, operations_before=now + 1, limit=1_000_000)
        gone, looks = list[int](), list[int]()
        old_runs = Tables.old_runs

        def looked(self: Tables, before: int, limit: int) -> list[int]:
            looks.append(sum(gone))
            return old_runs(self, before, limit)

        monkeypatch.setattr(Tables, "old_runs", looked)
        while not gone or gone[-1] > 1:  # until it finds only the operation before it
            gone.append(await catalog.retain(op(), keep))
        assert max(gone) == 100
        # To find what is old takes longer than to take it away: once for all 280 rows of it.
        assert [at for at in looks if at < 280] == [0]
        assert len(await catalog.runs(RunQuery(limit=1000))) == 70
        for name in names:
            assert [row.seq for row in await catalog.commits(name, "s")] == [3]
        assert (await catalog.check()).problems == ()


# -- other processes ---------------------------------------------------------------------------

KEEP = """
import apsw, sys
db = apsw.Connection(sys.argv[1])
db.execute("begin immediate")
print("kept", flush=True)
sys.stdin.read()
"""


async def test_a_stuck_writer_of_another_process_is_named_and_passes(path: Path) -> None:
    async with opened(path, tuning=QUICK) as catalog:
        command = [sys.executable, "-c", KEEP, str(path)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe) as child:  # noqa: ASYNC220
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdout.readline()
            with pytest.raises(Unavailable, match=f"process {child.pid} "):
                await pause(catalog, "p")
            assert f"process {child.pid} " in (await catalog.stats()).last_error
            assert (await catalog.pipeline("p")).version == 0  # reading goes on
            child.stdin.close()
        await pause(catalog, "p")
        assert (await catalog.stats()).last_error == ""


async def test_a_wait_ends_with_others_changes_and_not_with_ones_own(path: Path) -> None:
    async with opened(path) as mine, opened(path) as others:
        await pause(mine, "p")
        seen = (await mine.changed(0))[-1].change
        assert not await mine.wait_changed(seen, 0.3)
        await pause(mine, "q")
        assert not await mine.wait_changed(seen, 0.3)
        seen = (await mine.changed(0))[-1].change
        await pause(others, "r")
        # Before the wait, and for each that waits.
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(mine.wait_changed, seen, PATIENCE)
        assert await mine.wait_changed(seen, PATIENCE)
        seen = (await mine.changed(0))[-1].change
        assert not await mine.wait_changed(seen, 0.3)
        await pause(mine, "s")  # after another's: still one's own
        assert not await mine.wait_changed(seen, 0.3)


async def test_a_wait_does_not_end_with_what_changes_no_pipeline(path: Path) -> None:
    async with opened(path) as mine, opened(path) as others:
        await pause(mine, "p")
        seen = (await mine.changed(0))[-1].change
        await others.renew(op(), HOLDER, [], ttl=60)
        assert not await mine.wait_changed(seen, 0.3)


# -- reading -----------------------------------------------------------------------------------


async def test_reads_go_on_while_a_writer_is_at_work(path: Path) -> None:
    async with opened(path) as catalog:
        await pause(catalog, "p")
        with Gate(path):
            assert (await catalog.pipeline("p")).paused
            assert len(await catalog.changed(0)) == 1


async def test_no_read_keeps_a_transaction_open(path: Path) -> None:
    """An open read would keep the log from being cut, for ever."""
    async with opened(path) as catalog:
        (lease,) = await claim(catalog, "p")
        await catalog.commit(op(), lease, [Batch("s", 0, "r")], {})
        await catalog.cursor("p", "s")
        await catalog.pipeline("p")
        await catalog.streams("p")
        await catalog.changed(0, 1)
        await catalog.changed(0)
        await catalog.runs(RunQuery())
        await catalog.stats()
        other = apsw.Connection(str(path))
        other.pragma("user_version")
        other.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        assert (await catalog.stats()).wal_bytes == 0
        other.close()


async def test_the_log_is_copied_back_and_cut(path: Path) -> None:
    tuning = Tuning(checkpoint_pages=20, truncate_bytes=200_000)
    async with opened(path, tuning=tuning) as catalog, opened(path) as reader:
        (lease,) = await claim(catalog, "p")
        reader._readers.near.db.execute("begin")
        reader._readers.near.db.execute("select * from meta").fetchall()
        follows = 0
        while (await catalog.stats()).wal_bytes < 300_000:  # a reader keeps it from being reused
            await catalog.commit(op(), lease, [Batch("s", follows, "x" * 3000)], {"s": follows})
            follows += 1
        reader._readers.near.db.execute("rollback")
        with anyio.fail_after(PATIENCE):
            while (await catalog.stats()).wal_bytes > 200_000:
                await catalog.commit(op(), lease, [Batch("s", follows, "x")], {"s": follows})
                follows += 1


# -- the file's identity -----------------------------------------------------------------------


def lead_elsewhere(path: Path, how: str) -> None:
    if how == "removed":
        path.unlink()
        return
    backup = path.with_name("backup.db")
    backup.write_bytes(b"")
    backup.rename(path)


@pytest.mark.parametrize("how", ["replaced", "removed"])
async def test_nothing_is_acknowledged_into_a_file_that_is_not_there_any_more(
    path: Path, how: str
) -> None:
    async with opened(path) as catalog:
        (lease,) = await claim(catalog, "p")
        lead_elsewhere(path, how)
        for write in (
            catalog.renew(op(), HOLDER, [lease], ttl=60),
            catalog.commit(op(), lease, [Batch("s", 0, "r")], {}),
        ):
            with pytest.raises(Unavailable, match="was replaced or removed"):
                await write
        assert "was replaced or removed" in (await catalog.stats()).last_error


async def test_a_closed_catalog_says_so(path: Path) -> None:
    async with opened(path) as catalog:
        pass
    with pytest.raises(Unavailable, match="closed"):
        await pause(catalog, "p")


LEFT_OPEN = """
import asyncio, pathlib, sys
from catalog.clock import SystemClock
from catalog.sqlite.backend import SqliteCatalog
opened = asyncio.run(SqliteCatalog.open(pathlib.Path(sys.argv[1]), SystemClock(), 1 << 30))
print(opened.id)
"""


def test_a_process_that_closes_nothing_ends_all_the_same(path: Path) -> None:
    command = [sys.executable, "-c", LEFT_OPEN, str(path)]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
    assert (done.returncode, len(done.stdout.strip())) == (0, 32)


async def test_closing_carries_out_what_is_queued(path: Path) -> None:
    catalog = await SqliteCatalog.open(path, ManualClock(), LIMIT)
    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(pause, catalog, f"p{number}")
        await anyio.lowlevel.checkpoint()
        await catalog.aclose()
    async with opened(path) as again:
        assert len(await again.changed(0)) == 50
    assert sorted(os.listdir(path.parent)) == ["catalog.db"]  # noqa: PTH208
