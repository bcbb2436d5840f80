"""One stream of one run, step by step: what is asked for, in which order, and how it can end."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from catalog.records import (
    MAX_UNPUBLISHED,
    Batch,
    Commit,
    ErrorClass,
    FileEntry,
    Outcome,
    StreamResult,
)
from reconciler.config.desired import Mode, StreamSettings
from reconciler.connectors.ports import (
    NOTED_FILE_BYTES,
    BatchName,
    ConnectorError,
    Progress,
    Receipt,
    Rejected,
    Rows,
    StageRequest,
    Stopped,
)
from reconciler.run import messages as m
from reconciler.run import stream as module
from reconciler.run.link import LeaseOver
from reconciler.run.stream import SEAL_BYTES, SEAL_SECONDS
from tests.replacing import replace
from tests.stream_kit import (
    DECISION,
    FILE,
    KEY,
    OWNER,
    REJECTED,
    VERDICT,
    FakeRead,
    World,
    at,
    cursor,
    mark,
    receipt,
    rows,
    waiting,
)

# -- bringing up to date ---------------------------------------------------------------------------


def test_rows_are_sealed_then_committed_then_published() -> None:
    world = World(FakeRead(rows(1, 2), Rejected((REJECTED,)), mark(7)))
    found = world.run()
    assert world.diary == ["seal", "commit", "publish 1"]
    assert found == StreamResult(
        "orders",
        Outcome.SUCCEEDED,
        "read to its bound",
        rows=2,
        bytes=rows(1, 2).batch.nbytes,
        rejected=1,
    )
    ((batch, published),) = world.commits
    assert msgspec.json.decode(batch.receipt, type=Receipt) == receipt(
        1, bytes=77, cursor=cursor(7)
    )
    assert batch == Batch(
        "orders",
        0,
        batch.receipt,
        cursor=cursor(7),
        rows=2,
        bytes=77,
        rejected=1,
        data_at=7,
        schema=VERDICT.version,
        decisions=(DECISION,),
    )
    assert published == {}
    assert world.shared.published == {"orders": 1}
    assert world.read.closed


def test_rows_that_go_into_several_files_have_their_order_in_the_time_they_were_loaded() -> None:
    unfit = Rows(pa.record_batch({"id": [3], "amount": ["none"]}))
    world = World(FakeRead(rows(1, 2), unfit, rows(4), mark(7)))
    world.run(settings=replace(KEY, mode=Mode.APPEND, partition_by=("amount",)))
    first, *others = [row["_loaded_at"].timestamp() for row in world.stages[0].rows]
    assert [round((other - first) * 1e6) for other in others] == [1, 3]
    for plain in (KEY, StreamSettings(mode=Mode.APPEND, partition_by=("amount",))):
        world = World(FakeRead(rows(1, 2), mark(7)))
        world.run(settings=plain)
        assert len({row["_loaded_at"] for row in world.stages[0].rows}) == 1


def test_each_row_says_which_run_and_batch_brought_it_and_when(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(monotonic=lambda: 5.0, time_ns=lambda: 1_790_000_000_000_001_999)
    monkeypatch.setattr(module, "time", clock)
    world = World(FakeRead(rows(1), mark(7)), marker=at(4))
    world.run(seq=4, published=4)
    (stage,) = world.stages
    (row,) = stage.rows
    assert (row["id"], row["amount"], row["_run_id"], row["_batch_id"]) == (1, 1, 9, 5)
    assert row["_loaded_at"].timestamp() == 1_790_000_000.000001
    assert stage.request == StageRequest(
        name=BatchName(OWNER, 9, 5),
        table="orders",
        mode=Mode.MERGE,
        schema=stage.request.schema,
        schema_version=1,
        arrow=stage.request.arrow,
        settings=KEY,
        may_empty=False,
    )
    assert [f.name for f in stage.request.schema.fields] == stage.request.arrow.names
    assert world.commits[0][0].follows == 4


def test_rows_that_do_not_fit_are_set_aside_and_counted() -> None:
    odd = pa.record_batch({"id": [1, 2], "amount": ["many", "3"]})
    world = World(FakeRead(Rows(odd), mark(7)))
    found = world.run()
    assert (found.rows, found.rejected) == (1, 1)
    assert [row["id"] for row in world.stages[0].rows] == [2]
    assert [row.place for row in world.stages[0].rejected] == ["id=1"]
    assert (world.commits[0][0].rows, world.commits[0][0].rejected) == (1, 1)


def test_all_that_was_set_aside_is_counted() -> None:
    odd = Rows(pa.record_batch({"id": [1, 2], "amount": ["many", "3"]}))
    aside = Rejected((REJECTED,))
    parts = [odd, aside, odd, mark(1), aside, odd, mark(2)]
    world = World(FakeRead(*parts, ordered=True), size=SEAL_BYTES)
    found = world.run()
    assert [batch.rejected for batch, _ in world.commits] == [3, 2]
    assert (found.rows, found.rejected) == (3, 5)


def test_the_files_of_all_marks_go_with_their_batch() -> None:
    other = replace(FILE, path="b.csv")
    first = mark(1, files=(FILE,), forgotten=("x.csv",))
    second = mark(2, files=(other,), forgotten=("y.csv",))
    world = World(FakeRead(rows(1), first, rows(2), second))
    world.run()
    ((batch, _),) = world.commits
    assert (batch.files, batch.forgotten) == ((FILE, other), ("x.csv", "y.csv"))


def test_a_run_that_set_rows_aside_alone_brought_something() -> None:
    found = World(FakeRead(Rejected((REJECTED,)), mark(7))).run()
    assert (found.outcome, found.rows, found.rejected) == (Outcome.SUCCEEDED, 0, 1)


def test_a_mark_without_rows_is_no_batch() -> None:
    world = World(FakeRead(mark(7)))
    found = world.run()
    assert (found.outcome, found.reason) == (Outcome.NOTHING_NEW, "nothing new up to the bound")
    assert world.diary == ["abort"]


@pytest.mark.parametrize("files", [{"files": (FILE,)}, {"forgotten": ("b.csv",)}])
def test_a_file_without_rows_is_committed_so_that_it_is_not_read_again(files: Any) -> None:
    world = World(FakeRead(mark(7, **files)))
    assert world.run().outcome is Outcome.NOTHING_NEW
    assert world.diary == ["seal", "commit", "publish 1"]
    batch = world.commits[0][0]
    assert files in ({"files": batch.files}, {"forgotten": batch.forgotten})


def test_where_nothing_is_new_nothing_is_read_or_proposed() -> None:
    world = World(FakeRead(rows(1), mark(7), has_news=False))
    assert world.run().outcome is Outcome.NOTHING_NEW
    assert (world.diary, world.proposed, world.read.closed) == ([], [], True)


def test_why_nothing_is_new_is_said_where_it_may_surprise() -> None:
    world = World(FakeRead(has_news=False, idle="the table ends before the cursor"))
    assert world.run().reason == "the table ends before the cursor"


def test_the_read_goes_on_at_the_cursor_and_knows_the_files_read_before() -> None:
    world = World()
    world.run(cursor=cursor(5))
    (request,) = world.requests
    assert (request.stream, request.settings) == ("orders", KEY)
    assert (request.cursor, request.refresh) == (cursor(5), False)
    assert request.ledger() == (FILE,)
    assert request.stopped() is False
    world.cancelled = True
    assert request.stopped() is True
    known = replace(FILE, path="known")
    world = World(ledgers={"orders": (known,), "items": ()})
    world.run()
    assert world.requests[0].ledger() == (known,)


def test_notes_and_what_was_left_out_are_told() -> None:
    world = World(FakeRead(left_out={"null_cursor": 3}))
    world.run()
    assert world.shared.notes == [
        ("orders", "3 rows left out: null_cursor"),
        ("orders", "assumes this"),
    ]


def test_the_key_is_the_settings_or_else_the_sources() -> None:
    world = World(FakeRead(rows(1), mark(7), key=("amount",)))
    world.run()
    world.read = FakeRead(rows(1), mark(8), key=("amount",))
    world.run(settings=StreamSettings(), seq=1, published=1)
    assert [schema.key for schema in world.proposed] == [("id",), ("amount",)]


def test_without_a_key_nothing_is_merged_and_no_other_stream_is_stopped() -> None:
    found = World(FakeRead(rows(1), mark(7))).run(settings=StreamSettings())
    assert (found.outcome, found.error) == (Outcome.HELD, None)
    assert found.reason == (
        "stream 'orders' has no key to merge on: the source declares none; set "
        '`key = ["column"]`, or mode = "append" or "replace", or take it out of `select`'
    )
    assert found.hold is not None
    assert found.hold.choices == ("retry",)
    world = World(FakeRead(rows(1), mark(7)))
    assert world.run(settings=StreamSettings(mode=Mode.APPEND)).outcome is Outcome.SUCCEEDED
    assert world.stages[0].request.mode is Mode.APPEND


def test_a_mode_that_the_destination_has_not_is_refused() -> None:
    world = World()
    world.modes = frozenset({Mode.REPLACE, Mode.APPEND})
    found = world.run()
    assert (found.outcome, found.error) == (Outcome.FAILED, ErrorClass.PERMANENT)
    assert found.reason == (
        "mode 'merge' is not one of append, replace, which the destination 'to' knows"
    )


@pytest.mark.parametrize(
    ("state", "unpublished", "after"),
    [
        ({"published": 3, "published_by": 7}, (), 7),
        ({"published": 2, "published_by": 7}, (waiting(3),), 8),
        ({"published": 3, "published_by": 7, "directive": "adopt"}, (), 9),
    ],
    ids=["published", "waiting", "adopted"],
)
def test_a_batch_says_which_run_brought_the_one_before(
    state: dict[str, Any], unpublished: tuple[Commit, ...], after: int
) -> None:
    """(B4) The destination may be put back from another past once its marker was looked at."""
    world = World(FakeRead(rows(1), mark(7)), marker=at(state["published"], epoch=7))
    world.unpublished = unpublished
    assert world.run(seq=3, cursor=cursor(3), **state).outcome is Outcome.SUCCEEDED
    assert [stage.request.after for stage in world.stages] == [after]


# -- batches of one read ---------------------------------------------------------------------------


def test_an_ordered_read_is_committed_at_the_first_mark_past_so_many_bytes() -> None:
    parts = [rows(1), mark(1), rows(2), mark(2), rows(3), rows(4), mark(4), rows(5), mark(5)]
    world = World(FakeRead(*parts, ordered=True), size=SEAL_BYTES // 2)
    found = world.run()
    assert [(b.follows, b.rows, b.cursor) for b, _ in world.commits] == [
        (0, 2, cursor(2)),
        (1, 2, cursor(4)),
        (2, 1, cursor(5)),
    ]
    assert [published for _, published in world.commits] == [{}, {"orders": 1}, {"orders": 2}]
    assert [b.decisions for b, _ in world.commits] == [(DECISION,), (), ()]
    assert found.rows == 5
    assert len(world.proposed) == 1
    assert [s.rows[0]["_batch_id"] for s in world.stages] == [1, 2, 3]
    assert [s.request.after for s in world.stages] == [0, 9, 9]


def test_an_ordered_read_is_committed_once_rows_have_waited_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    clock = SimpleNamespace(monotonic=lambda: world.now, time_ns=lambda: 0)
    monkeypatch.setattr(module, "time", clock)

    def passes(seconds: float) -> Callable[[], None]:
        def wait() -> None:
            world.now += seconds

        return wait

    world.read = FakeRead(
        *(mark(0), passes(SEAL_SECONDS + 1), mark(1), rows(2), passes(SEAL_SECONDS)),
        *(mark(2), rows(3), mark(3)),
        ordered=True,
    )
    world.run()
    assert [(b.rows, b.cursor) for b, _ in world.commits] == [(1, cursor(2)), (1, cursor(3))]


def test_an_ordered_read_is_committed_once_it_notes_many_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where a folder of them was renamed: a commit is one message."""
    monkeypatch.setattr(module, "NOTED_BYTES", 2 * NOTED_FILE_BYTES)
    files = [replace(FILE, path=f"{n}.csv") for n in range(5)]
    marks = [mark(n, files=(file,)) for n, file in enumerate(files)]
    world = World(FakeRead(*marks, ordered=True))
    world.run()
    assert [batch.files for batch, _ in world.commits] == [
        tuple(files[:2]),
        tuple(files[2:4]),
        tuple(files[4:]),
    ]


def test_no_file_is_noted_in_more_than_is_counted() -> None:
    large, longest = 2**63 - 1, "ä" * 5_000
    file = FileEntry(longest, large, large, large, large, "f" * 64, large, large)
    taken = len(msgspec.msgpack.encode(file))
    assert taken <= NOTED_FILE_BYTES + len(longest.encode())


def test_an_unordered_read_is_one_batch_however_large() -> None:
    """(B7)"""
    parts = [rows(1), mark(1), rows(2), mark(2)]
    world = World(FakeRead(*parts), size=SEAL_BYTES)
    world.run()
    assert [(b.rows, b.cursor) for b, _ in world.commits] == [(2, cursor(2))]


def test_a_replacement_is_one_batch_whatever_the_source_says() -> None:
    """(B7)"""
    parts = [rows(1), mark(1), rows(2), mark(2)]
    world = World(FakeRead(*parts, ordered=True), size=SEAL_BYTES)
    world.run(directive="refresh")
    assert [(b.rows, b.cursor, b.replaces) for b, _ in world.commits] == [(2, cursor(2), True)]


def test_all_that_was_read_so_far_is_told_at_most_once_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    clock = SimpleNamespace(monotonic=lambda: world.now, time_ns=lambda: 0)
    monkeypatch.setattr(module, "time", clock)

    def tick() -> None:
        world.now += 0.5

    world.read = FakeRead(
        *(Progress(5), tick, Progress(5), tick, rows(1), rows(2, 3), tick, tick, Progress(1)),
        *(tick, rows(4), tick, rows(5), mark(7)),
    )
    world.run()
    one, two = rows(1).batch.nbytes, rows(2, 3).batch.nbytes
    assert world.said == [
        m.Moved("orders", 0, 5),
        m.Moved("orders", 1, 10 + one),
        m.Moved("orders", 3, 11 + one + two),
        m.Moved("orders", 5, 11 + 3 * one + two),
    ]


# -- publishing ------------------------------------------------------------------------------------


def busy() -> ConnectorError:
    return ConnectorError(ErrorClass.TRANSIENT, "process 7 has it open", busy=True)


def large(number: int) -> list[Any]:
    return [part for n in range(1, number + 1) for part in (rows(n), mark(n))]


def test_a_busy_destination_does_not_stop_the_reading() -> None:
    world = World(FakeRead(*large(3), ordered=True), size=SEAL_BYTES, publish=[busy(), busy()])
    assert world.run().outcome is Outcome.SUCCEEDED
    assert [one for one in world.diary if "publish" in one] == [
        "publish 1",
        "publish 1 2",
        "publish 1 2 3",
    ]
    assert world.shared.published == {"orders": 3}


def test_a_destination_that_stays_busy_is_why_the_run_ends() -> None:
    world = World(FakeRead(*large(1)), publish=[busy(), busy()])
    found = world.run()
    assert (found.outcome, found.reason) == (Outcome.FAILED, "process 7 has it open")
    assert (found.rows, found.error) == (1, ErrorClass.TRANSIENT)
    assert world.shared.published == {}


def test_no_more_batches_are_committed_than_may_wait() -> None:
    read = FakeRead(*large(MAX_UNPUBLISHED + 3), ordered=True)
    world = World(read, size=SEAL_BYTES, publish=[busy() for _ in range(99)])
    assert world.run().outcome is Outcome.FAILED
    assert len(world.commits) == MAX_UNPUBLISHED


def test_a_failure_to_publish_that_is_not_busy_ends_the_run_at_once() -> None:
    broken = ConnectorError(ErrorClass.PERMANENT, "no room on the disk")
    world = World(FakeRead(*large(3), ordered=True), size=SEAL_BYTES, publish=[broken])
    found = world.run()
    assert (found.outcome, found.error) == (Outcome.FAILED, ErrorClass.PERMANENT)
    assert len(world.commits) == 1


def test_what_earlier_runs_left_is_published_before_anything_is_read() -> None:
    world = World(FakeRead(rows(1), mark(7)), marker=at(1))
    world.unpublished = (waiting(1, "items"), waiting(2), waiting(3))
    world.run(seq=3, published=1)
    assert world.diary == ["publish 2 3", "seal", "commit", "publish 4"]
    assert world.commits[0][1] == {"orders": 3}


def test_what_was_committed_and_never_published_needs_no_marker_to_go_on() -> None:
    world = World(FakeRead(rows(1), mark(7)))
    world.unpublished = (waiting(1), waiting(2))
    world.run(seq=2)
    assert world.diary == ["publish 1 2", "seal", "commit", "publish 3"]


# -- refusals --------------------------------------------------------------------------------------


def refusal(code: str, *, definite: bool) -> m.NotCommitted:
    return m.NotCommitted(1, code, f"refused: {code}", definite)


def test_a_definite_refusal_discards_the_runs_own_batch() -> None:
    world = World(FakeRead(rows(1), mark(7)), answers=[refusal("conflict", definite=True)])
    found = world.run()
    assert world.discarded == [BatchName(OWNER, 9, 1)]
    assert (found.outcome, found.reason) == (Outcome.FAILED, "refused: conflict")
    assert (found.error, found.rows) == (ErrorClass.PERMANENT, 0)
    assert world.diary == ["seal", "commit", "abort"]


def test_without_a_definite_answer_nothing_is_discarded() -> None:
    """The catalog may have committed it (B2)."""
    world = World(FakeRead(rows(1), mark(7)), answers=[refusal("unknown", definite=False)])
    found = world.run()
    assert world.discarded == []
    assert (found.outcome, found.error) == (Outcome.FAILED, ErrorClass.TRANSIENT)
    assert "publish 1" not in world.diary


@pytest.mark.parametrize("code", ["unavailable", "full", "unpublished", "stream_held"])
def test_a_refusal_that_waiting_mends_is_tried_again(code: str) -> None:
    world = World(FakeRead(rows(1), mark(7)), answers=[refusal(code, definite=True)])
    assert world.run().error is ErrorClass.TRANSIENT


def test_who_is_fenced_says_so() -> None:
    world = World(FakeRead(rows(1), mark(7)), answers=[refusal("fenced", definite=True)])
    found = world.run()
    assert (found.outcome, found.reason) == (Outcome.FENCED, "refused: fenced")
    assert found.error is None


# -- the ways it can end ---------------------------------------------------------------------------


def test_a_cancelled_run_commits_nothing_more() -> None:
    world = World()
    world.read = FakeRead(rows(1), lambda: setattr(world, "cancelled", True), rows(2), mark(2))
    found = world.run()
    assert (found.outcome, found.reason) == (Outcome.CANCELLED, "cancelled")
    assert (world.diary, world.read.closed) == (["abort"], True)
    assert World(FakeRead(rows(1), Stopped())).run().outcome is Outcome.CANCELLED


@pytest.mark.parametrize("directive", ["", "adopt", "refresh"])
def test_once_the_lease_is_over_nothing_is_done_that_others_could_see(directive: str) -> None:
    world = World(FakeRead(rows(1), mark(7)), marker=at(3), lease_over=True)
    world.unpublished = () if directive else (waiting(3),)
    with pytest.raises(LeaseOver):
        world.run(seq=3, published=2, directive=directive)
    assert (world.diary, world.adopted) == ([], [])


def test_once_the_lease_is_over_nothing_more_is_read() -> None:
    world = World()
    world.read = FakeRead(rows(1), lambda: setattr(world, "lease_over", True), rows(2), mark(2))
    with pytest.raises(LeaseOver):
        world.run()
    assert [row["id"] for row in world.stages[0].rows] == [1]
    assert world.read.closed


@pytest.mark.parametrize("step", ["stage", "commit", "publish"])
def test_the_lease_is_asked_after_before_each_step(step: str) -> None:
    world = World(FakeRead(rows(1), mark(7)))

    def ends_after(name: str) -> Callable[..., Any]:
        before = getattr(world, name)

        def then(*args: Any) -> Any:
            found = before(*args)
            world.lease_over = True
            return found

        return then

    last = {"stage": "propose", "commit": "did", "publish": "commit"}[step]
    setattr(world, last, ends_after(last))
    with pytest.raises(LeaseOver):
        world.run()
    assert len(world.stages) == (step != "stage")
    assert ("commit" in world.diary) == (step == "publish")
    assert "publish 1" not in world.diary


def test_a_connectors_error_has_its_class_and_its_connections_are_opened_anew() -> None:
    error = ConnectorError(ErrorClass.RATE_LIMITED, "slower, please", retry_after=60.0)
    world = World(FakeRead(rows(1), error))
    found = world.run()
    assert (found.outcome, found.reason) == (Outcome.FAILED, "slower, please")
    assert found.error is ErrorClass.RATE_LIMITED
    assert world.shared.retry_after == 60.0
    assert sorted(world.forgotten) == ["from", "to"]
    world.read = FakeRead(ConnectorError(ErrorClass.TRANSIENT, "gone"))
    world.run()
    assert world.shared.retry_after == 60.0
    world.read = FakeRead(ConnectorError(ErrorClass.RATE_LIMITED, "slower", retry_after=5.0))
    world.run()
    assert world.shared.retry_after == 60.0


def test_a_fault_of_a_connector_is_no_fault_of_the_worker(
    capsys: pytest.CaptureFixture[str],
) -> None:
    world = World(FakeRead(rows(1), KeyError("amount")))
    found = world.run()
    assert (found.outcome, found.error) == (Outcome.FAILED, ErrorClass.TRANSIENT)
    assert found.reason == "the connector met a fault of its own: KeyError: 'amount'"
    assert sorted(world.forgotten) == ["from", "to"]
    assert "KeyError" in capsys.readouterr().err
