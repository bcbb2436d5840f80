"""The daemon's side of a run, with a worker that says what a test wants (A8, A9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import anyio
import anyio.lowlevel
import msgspec
import pytest

from catalog.clock import ManualClock
from catalog.errors import CatalogError, Conflict, Fenced, Unavailable, Unknown
from catalog.memory import MemoryCatalog
from catalog.port import new_operation_id
from catalog.records import (
    Batch,
    Candidate,
    Claimed,
    ErrorClass,
    FileEntry,
    Finish,
    Holder,
    Outcome,
    SchemaVersion,
    StreamResult,
    Trigger,
    TriggerKind,
)
from reconciler.config.desired import SchemaPolicy, StreamSettings
from reconciler.run import conduct
from reconciler.run import messages as m
from reconciler.run.conduct import Conduct, Ended, until_known
from reconciler.run.pool import LeaseRanOut, Worker, WorkerGone, WorkerPool
from reconciler.schema.model import Field, Schema, dump, fingerprint
from tests.crash.whole_world import PIPELINE, PROJECT

pytestmark = pytest.mark.anyio


class Script:
    """A worker and the pool that it comes from. Says its lines, then nothing more."""

    def __init__(self, *lines: m.ToDaemon | Exception) -> None:
        self.lines, self.heard = list(lines), cast("list[m.ToWorker]", [])
        self.alive, self.gone, self.killed = True, False, 0
        self.released: list[bool] = []
        self.on_silence: Any = None

    async def acquire(self) -> Worker:
        return cast(Worker, self)

    async def release(self, worker: Worker, *, healthy: bool) -> None:
        assert cast(Any, worker) is self
        self.released.append(healthy)

    async def send(self, message: m.ToWorker) -> None:
        if self.gone:
            raise WorkerGone("it is gone")
        self.heard.append(message)

    async def receive(self) -> m.ToDaemon:
        if not self.lines:
            if self.on_silence:
                self.on_silence()
            await anyio.sleep_forever()
        line = self.lines.pop(0)
        if isinstance(line, Exception):
            raise line
        return line

    def printed(self) -> bytes:
        return b"printed"

    def kill(self) -> None:
        self.killed += 1


async def a_run(**settings: Any) -> Conduct:
    catalog = MemoryCatalog(ManualClock())
    candidate = Candidate("shop", 0, Trigger(TriggerKind.TICK, tick=1), "due")
    holder = Holder("daemon-1", "host", 1)
    (answer,) = await catalog.claim(new_operation_id(), holder, [candidate], ttl=60, limits={})
    assert isinstance(answer, Claimed)
    pipelines = {"shop": replace(PIPELINE, **settings)}
    project = replace(PROJECT, pipelines=pipelines)
    return Conduct(answer, project, catalog, ManualClock())


async def ended(run: Conduct, worker: Script) -> Ended:
    order = await run.order(lambda _: {}, 0)
    with anyio.fail_after(60):
        found = await run.run(cast(WorkerPool, worker), order)
    assert worker.heard[0] == order
    return found


def done(run: Conduct, *results: StreamResult, epoch: int | None = None) -> m.Done:
    return m.Done(results, {}, epoch=run.lease.epoch if epoch is None else epoch)


def failed(why: str) -> m.Done:
    """As something that may be tried again."""
    return m.Done((), {}, failure=why, error=ErrorClass.TRANSIENT)


async def test_a_worker_that_is_done_can_be_used_again() -> None:
    run = await a_run()
    worker = Script(done(run))
    assert await ended(run, worker) == Ended(done(run), printed=b"printed")
    assert (worker.released, worker.killed) == ([True], 0)


async def test_what_is_said_once_more_of_an_earlier_run_is_passed_over() -> None:
    run = await a_run()
    worker = Script(done(run, epoch=run.lease.epoch - 1), done(run))
    assert (await ended(run, worker)).done == done(run)
    assert worker.released == [True]


async def test_a_worker_that_ends_costs_its_run_and_is_not_used_again() -> None:
    run = await a_run()
    worker = Script(WorkerGone("the worker ended"))
    found = await ended(run, worker)
    assert found == Ended(failed("the worker ended"), printed=b"printed")
    assert worker.released == [False]


async def test_a_worker_whose_lease_ran_out_interrupts_its_run() -> None:
    run = await a_run()
    worker = Script(LeaseRanOut())
    found = await ended(run, worker)
    assert (found.done.failure, found.outcome) == (str(LeaseRanOut()), Outcome.INTERRUPTED)
    assert worker.released == [False]


@pytest.mark.parametrize("alive", [True, False])
async def test_a_worker_that_lives_is_told_its_deadline(*, alive: bool) -> None:
    run = await a_run()
    worker = Script()
    worker.alive = alive

    async def end() -> None:
        await run.extend(77)
        worker.gone = True
        await run.extend(88)  # the conversation notices by itself
        run.stop(Outcome.FENCED, "another took over")

    async with anyio.create_task_group() as tasks:
        worker.on_silence = lambda: tasks.start_soon(end)
        await ended(run, worker)
    assert worker.heard[1:] == ([m.Deadline(77)] if alive else [])


async def test_a_worker_that_was_waited_for_is_told_the_deadline_of_the_newest_renewal() -> None:
    """It may have been waited for as long as the lease was for."""
    run = await a_run()

    class Late(Script):
        async def acquire(self) -> Worker:
            await run.extend(77)
            return await super().acquire()

    worker = Late(done(run))
    await run.run(cast(WorkerPool, worker), await run.order(lambda _: {}, 5))
    assert [cast(m.RunOrder, told).deadline_ns for told in worker.heard] == [77]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stall_timeout": 0.01}, "no bytes moved for 0.01 s, the pipeline's `stall_timeout`"),
        ({"timeout": 0.01}, "not done after 0.01 s, the pipeline's `timeout`"),
    ],
)
async def test_a_worker_that_says_nothing_is_killed(settings: dict[str, Any], words: str) -> None:
    run = await a_run(**settings)
    worker = Script()
    found = await ended(run, worker)
    assert found == Ended(failed(words), printed=b"printed")
    assert (worker.released, worker.killed) == ([False], 1)


@pytest.mark.parametrize("counts", [(-1, 2, 3), (1, -2, 3), (1, 2, -3), (2**63, 2, 3)])
async def test_numbers_that_cannot_be_end_the_run(counts: Sequence[int]) -> None:
    run = await a_run()
    rows, size, rejected = counts
    result = StreamResult("s", Outcome.SUCCEEDED, rows=rows, bytes=size, rejected=rejected)
    worker = Script(done(run, result))
    words = f"stream 's' moved {rows} rows, {size} bytes and set {rejected} aside"
    assert words in (await ended(run, worker)).done.failure
    assert (worker.released, worker.killed) == ([False], 1)


async def test_an_answer_for_a_later_run_ends_the_run() -> None:
    run = await a_run()
    worker = Script(done(run, epoch=run.lease.epoch + 1))
    assert "answered for run 2 in the midst of run 1" in (await ended(run, worker)).done.failure
    assert (worker.released, worker.killed) == ([False], 1)


@pytest.mark.parametrize("stops", [True, False])
async def test_a_cancelled_worker_is_asked_to_stop_and_killed_when_it_does_not(
    monkeypatch: pytest.MonkeyPatch, *, stops: bool
) -> None:
    monkeypatch.setattr(conduct, "CANCEL_WITHIN", 60 if stops else 0.01)
    run = await a_run()
    worker = Script()

    def stop() -> None:
        run.stop(Outcome.CANCELLED, "ann said so")
        run.stop(Outcome.FENCED, "too late")
        worker.lines = [done(run)] if stops else []

    worker.on_silence = stop
    found = await ended(run, worker)
    assert found.outcome is Outcome.CANCELLED
    assert worker.heard[1] == m.Cancel()
    assert (worker.released, worker.killed) == (([True], 0) if stops else ([False], 1))
    assert found.done.failure == "ann said so"
    assert found.done.epoch == (done(run).epoch if stops else 0)


async def test_a_worker_that_talks_nonsense_when_it_is_to_stop_is_killed() -> None:
    run = await a_run()
    worker = Script()

    def stop() -> None:
        run.stop(Outcome.CANCELLED, "ann said so")
        worker.lines = [m.Ready()]

    worker.on_silence = stop
    found = await ended(run, worker)
    assert (found.outcome, found.done.failure) == (Outcome.CANCELLED, "ann said so")
    assert (worker.released, worker.killed) == ([False], 1)


async def test_a_fenced_worker_is_killed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conduct, "CANCEL_WITHIN", 600)
    run = await a_run()
    worker = Script()
    worker.on_silence = lambda: run.stop(Outcome.FENCED, "another took over")
    found = await ended(run, worker)
    assert (found.outcome, found.done.failure) == (Outcome.FENCED, "another took over")
    assert (worker.released, worker.killed) == ([False], 1)


async def test_a_run_that_is_stopped_before_it_has_a_worker_ends_as_it_was_told() -> None:
    run = await a_run()

    class Busy(Script):
        async def acquire(self) -> Worker:
            run.stop(Outcome.CANCELLED, "ann said so")
            await anyio.sleep_forever()
            return await super().acquire()

    worker = Busy()
    with anyio.fail_after(60):
        found = await run.run(cast(WorkerPool, worker), await run.order(lambda _: {}, 0))
    assert found == Ended(m.Done((), {}, failure="ann said so"), Outcome.CANCELLED)
    assert (worker.released, worker.heard) == ([], [])


async def test_a_commit_is_answered() -> None:
    run = await a_run()
    moved: list[m.Moved] = []
    run.on_moved = moved.append
    batch = Batch("orders", 0, "r")
    ask = m.AskCommit(4, (batch,), {}, run.lease.epoch)
    worker = Script(m.Moved("orders", 1, 2), ask, done(run))
    await ended(run, worker)
    assert worker.heard[1:] == [m.Committed(4)]
    assert [row.seq for row in await run.catalog.commits("shop", "orders")] == [1]
    assert moved == [m.Moved("orders", 1, 2)]


async def test_a_commit_of_an_earlier_run_is_not_recorded_for_this_one() -> None:
    run = await a_run()
    ask = m.AskCommit(4, (Batch("orders", 0, "r"),), {}, run.lease.epoch - 1)
    worker = Script(ask, done(run))
    assert "answered for run 0 in the midst of run 1" in (await ended(run, worker)).done.failure
    assert (worker.released, worker.killed) == ([False], 1)
    assert await run.catalog.commits("shop") == ()


async def test_who_asked_for_a_commit_is_answered_before_it_is_told_to_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Left not knowing, it would discard nothing and could publish nothing."""
    run = await a_run()
    commit = run.catalog.commit

    async def slow(*asked: Any) -> None:
        run.stop(Outcome.CANCELLED, "ann said so")
        await anyio.lowlevel.checkpoint()
        await commit(*asked)

    monkeypatch.setattr(run.catalog, "commit", slow)
    ask = m.AskCommit(4, (Batch("orders", 0, "r"),), {}, run.lease.epoch)
    worker = Script(ask)
    worker.on_silence = lambda: worker.lines.append(done(run))
    assert (await ended(run, worker)).outcome is Outcome.CANCELLED
    assert worker.heard[1:] == [m.Committed(4), m.Cancel()]


@pytest.mark.parametrize(
    ("error", "definite"),
    [
        (Fenced("shop", 1, 2), True),
        (Conflict("it follows another"), True),
        (Unavailable("away"), True),
        (Unknown("unclear"), False),
    ],
)
async def test_a_worker_is_told_why_its_batch_was_not_committed_and_whether_that_is_certain(
    monkeypatch: pytest.MonkeyPatch, error: CatalogError, *, definite: bool
) -> None:
    """What is not certain is not discarded (B2)."""
    run = await a_run()
    told: list[Any] = []
    run.fenced = told.append

    async def refuse(*_: Any) -> None:
        raise error

    async def sleep(_: float) -> None: ...

    monkeypatch.setattr(anyio, "sleep", sleep)
    monkeypatch.setattr(run.catalog, "commit", refuse)
    worker = Script(m.AskCommit(4, (), {}, run.lease.epoch), done(run))
    await ended(run, worker)
    assert worker.heard[1:] == [m.NotCommitted(4, error.code, str(error), definite)]
    assert told == ([run.lease] if isinstance(error, Fenced) else [])


async def test_a_long_ledger_is_given_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conduct, "_LEDGER_PAGE", 2)
    run = await a_run()
    files = tuple(FileEntry(f"{n}.csv", n, 1, 1, 1, "hash") for n in range(4))
    batch = Batch("orders", 0, "r", files=files)
    await run.catalog.commit(new_operation_id(), run.lease, [batch], {})
    asked = (m.AskLedger(n, "orders", after) for n, after in ((3, ""), (4, "1.csv"), (5, "3.csv")))
    worker = Script(*asked, done(run))
    await ended(run, worker)
    pages = [(a.id, [f.path for f in a.files], a.more) for a in worker.heard[1:]]  # type: ignore[union-attr]
    assert pages == [(3, ["0.csv", "1.csv"], True), (4, ["2.csv", "3.csv"], True), (5, [], False)]


# -- what a run is told ---------------------------------------------------------------------------


async def claimed_again(run: Conduct, **trigger: Any) -> Conduct:
    """The next run of the pipeline, as the catalog is now."""
    await run.catalog.finish(new_operation_id(), run.lease, Finish(Outcome.SUCCEEDED, "done"))
    state = await run.catalog.pipeline("shop")
    candidate = Candidate("shop", state.version, Trigger(TriggerKind.TICK, tick=2, **trigger), "")
    (answer,) = await run.catalog.claim(
        new_operation_id(), Holder("daemon-1", "host", 1), [candidate], ttl=60, limits={}
    )
    assert isinstance(answer, Claimed)
    return Conduct(answer, run.project, run.catalog, ManualClock())


@pytest.mark.parametrize("numbers", [{"orders": 2}, {"orders": 9, "country": 8}])
async def test_a_run_is_told_of_every_batch_that_is_not_published(numbers: dict[str, int]) -> None:
    """(B5) They come before a new one; the first of ``orders`` is."""
    run = await a_run()
    for stream, number in numbers.items():
        for seq in range(number):
            published = {"orders": 1} if seq else {}
            batch = Batch(stream, seq, f"{stream} {seq + 1}")
            await run.catalog.commit(new_operation_id(), run.lease, [batch], published)
    run = await claimed_again(run)
    told = (await run.order(lambda _: {}, 0)).unpublished
    wanted = {(stream, n) for stream, number in numbers.items() for n in range(1, number + 1)}
    assert {(commit.stream, commit.seq) for commit in told} == wanted - {("orders", 1)}


async def test_a_run_is_told_what_it_is_to_read_and_the_name_that_destinations_know() -> None:
    run = await claimed_again(await a_run(parallel=3), streams=("orders",))
    order = await run.order(lambda _: {}, 0)
    assert (order.only, order.parallel, order.origin) == (("orders",), 3, "shop")
    run.claimed = msgspec.structs.replace(
        run.claimed, pipeline=msgspec.structs.replace(run.claimed.pipeline, origin="store")
    )
    assert (await run.order(lambda _: {}, 0)).origin == "store"


@pytest.mark.parametrize(("connector", "known"), [("files", 50), ("files", 51), ("shelf", 50)])
async def test_a_ledger_that_is_short_comes_with_the_order(connector: str, known: int) -> None:
    run = await a_run()
    shelf = replace(run.project.connections["shelf"], connector=connector)
    run.project = replace(run.project, connections={**run.project.connections, "shelf": shelf})
    files = tuple(FileEntry(f"{n}.csv", n, 1, 1, 1, "hash") for n in range(known))
    batch = Batch("orders", 0, "r", files=files)
    await run.catalog.commit(new_operation_id(), run.lease, [batch], {})
    told = (await run.order(lambda _: {}, 0)).ledgers
    short = {"orders": known, "country": 0} if known == 50 else {"country": 0}
    assert {s: len(found) for s, found in told.items()} == (short if connector == "files" else {})


async def test_a_schema_is_judged_by_the_streams_own_policy_against_its_newest_version() -> None:
    streams = {"orders": StreamSettings(schema_changes=SchemaPolicy(added="hold"))}
    run = await a_run(streams=streams)
    schemas = [Schema(tuple(Field(name, "int64") for name in names)) for names in ("a", "ab")]
    for number, schema in enumerate(schemas):
        version = SchemaVersion(number + 1, fingerprint(schema), dump(schema))
        batch = Batch("orders", number, "r", schema=version)
        await run.catalog.commit(new_operation_id(), run.lease, [batch], {})
    wider = Schema((*schemas[1].fields, Field("c", "int64")))
    worker = Script(m.Propose(1, "orders", schemas[1]), m.Propose(2, "orders", wider), done(run))
    await ended(run, worker)
    same, more = cast("list[m.Verdict]", worker.heard[1:])
    assert (same.hold, same.version and same.version.version) == (None, 2)
    assert more.hold is not None


# -- what may or may not have happened -----------------------------------------------------------


async def tried(monkeypatch: pytest.MonkeyPatch, *answers: Exception | None) -> list[float]:
    """How long was waited between the tries."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(anyio, "sleep", sleep)
    left = list(answers)

    async def attempt() -> None:
        if answer := left.pop(0):
            raise answer

    await until_known(attempt)
    assert left == []
    return waits


async def test_an_operation_is_sent_until_it_is_known_what_became_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    away, unclear = Unavailable("away"), Unknown("unclear")
    assert await tried(monkeypatch, None) == []
    waits = await tried(monkeypatch, unclear, *(away,) * 6, None)
    assert waits == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0]


async def test_once_unknown_it_stays_so_until_an_answer_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    away, unclear = Unavailable("away"), Unknown("unclear")
    for answers, error in (
        ((unclear, *(away,) * 7), unclear),
        ((*(away,) * 7, unclear), unclear),
        ((away,) * 8, away),
    ):
        with pytest.raises(type(error)) as caught:
            await tried(monkeypatch, *answers)
        assert caught.value is error
