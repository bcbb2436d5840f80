"""``edit``: what a person changes, and the audit of it (B5, F, rule 8)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from catalog.conformance.kit import (
    ALPHA,
    World,
    batch,
    cursor,
    dump,
    request,
    result,
    schema,
    schema_hold,
)
from catalog.errors import BadRequest, Fenced, Leased, NotFound, Refused, Stale, Unpublished
from catalog.records import (
    PIPELINE_SCOPE,
    Adopt,
    AnswerSchema,
    CancelRun,
    Decision,
    EditAction,
    FileEntry,
    Hold,
    HoldKind,
    Mark,
    Outcome,
    Pause,
    Refresh,
    Release,
    Rename,
    Request,
    RequestRun,
    Resume,
    RunQuery,
    SetCursor,
    StreamState,
    Trigger,
    TriggerKind,
)


async def refused(world: World, error: type[Refused], action: EditAction) -> None:
    """The edit is refused and changes nothing."""
    before = await dump(world.catalog)
    with pytest.raises(error, match=action.pipeline):
        await world.edit(action)
    assert await dump(world.catalog) == before


async def published(world: World, *batches: Any) -> None:
    """A run whose batches are all published."""
    marks = {one.stream: one.follows + 1 for one in batches}
    await world.run("shop", Outcome.SUCCEEDED, *batches, published=tuple(marks.items()))


async def the_stream(world: World) -> StreamState:
    return next(s for s in await world.catalog.streams("shop") if s.stream == "orders")


STREAM_EDITS: list[EditAction] = [
    Refresh("shop", "orders"),
    SetCursor("shop", "orders", cursor(1)),
    Adopt("shop", "orders"),
    Release("shop", "orders"),
]


def named(action: EditAction) -> str:
    return type(action).__name__


@pytest.mark.anyio
class TestEdits:
    async def test_an_edit_says_who_when_what_and_why(self, world: World) -> None:
        edit = await world.edit(Pause("shop"), by="ann", why="the source is being moved")
        assert (edit.by, edit.why, edit.at) == (
            "ann",
            "the source is being moved",
            world.clock.wall_us(),
        )
        assert (edit.action, edit.pipeline, edit.stream) == ("pause", "shop", "")
        assert "ann" in edit.new
        assert "ann" not in edit.old
        assert await world.catalog.edits() == (edit,)

    async def test_an_edit_says_what_changed_and_nothing_else(self, world: World) -> None:
        await world.lease()
        world.lapse()
        edit = await world.edit(Pause("shop"))
        assert (set(json.loads(edit.old)), set(json.loads(edit.new))) == ({"paused"}, {"paused"})

    async def test_a_stream_edit_says_old_and_new(self, world: World) -> None:
        await published(world, batch(cursor=cursor(41)))
        edit = await world.edit(SetCursor("shop", "orders", cursor(17)))
        assert (edit.action, edit.stream) == ("set_cursor", "orders")
        assert cursor(41).position.data.hex() in edit.old
        assert cursor(17).position.data.hex() in edit.new

    async def test_the_edit_of_a_new_stream_says_what_it_set_alone(self, world: World) -> None:
        edit = await world.edit(SetCursor("shop", "orders", cursor(17)))
        assert json.loads(edit.old) == {"cursor": None}
        assert set(json.loads(edit.new)) == {"cursor"}

    async def test_what_an_edit_of_a_stream_does_to_its_pipeline_is_in_the_audit(
        self, world: World
    ) -> None:
        await world.hold(schema_hold(), "orders")
        edit = await world.edit(Release("shop", "orders"))
        old, new = json.loads(edit.old), json.loads(edit.new)
        assert (old["held"], new["held"]) == (["orders"], [])
        assert set(old) == set(new) == {"hold", "held"}

    async def test_the_audit_keeps_names_as_they_are_written(self, world: World) -> None:
        await world.edit(Pause("shop"), by="Jörg", why="☃")
        edit = await world.edit(Pause("shop"), by="Zoë")
        assert "Jörg" in edit.old
        assert "☃" in edit.old
        assert "Zoë" in edit.new

    async def test_edits_are_listed_newest_first(self, world: World) -> None:
        ids = [(await world.edit(action)).id for action in (Pause("a"), Pause("b"), Resume("a"))]
        assert ids == sorted(set(ids))
        assert [edit.id for edit in await world.catalog.edits()] == ids[::-1]
        assert [edit.id for edit in await world.catalog.edits("a")] == [ids[2], ids[0]]
        assert [edit.id for edit in await world.catalog.edits(limit=1)] == [ids[2]]

    async def test_every_edit_is_a_change_that_claim_notices(self, world: World) -> None:
        before = await world.catalog.pipeline("shop")
        await world.edit(Pause("shop"))
        first = await world.catalog.pipeline("shop")
        await world.edit(Refresh("shop", "orders"))
        second = await world.catalog.pipeline("shop")
        assert before.version < first.version < second.version
        assert before.change < first.change < second.change

    async def test_pause_and_resume(self, world: World) -> None:
        await world.edit(Pause("shop"), why="broken")
        state = await world.catalog.pipeline("shop")
        assert state.paused == Mark("ann", world.clock.wall_us(), "broken")
        await world.edit(Resume("shop"))
        assert (await world.catalog.pipeline("shop")).paused is None

    async def test_resume_ends_a_parking_and_counts_failures_anew(self, world: World) -> None:
        await world.run("shop", Outcome.FAILED, park="broken")
        await world.edit(Resume("shop"))
        state = await world.catalog.pipeline("shop")
        assert (state.parked, state.failures) == (None, 0)

    async def test_resume_of_an_unknown_pipeline_is_refused(self, world: World) -> None:
        await refused(world, NotFound, Resume("shop"))

    async def test_a_request_is_kept_until_it_is_answered(self, world: World) -> None:
        await world.edit(RequestRun("shop", "r1", ("orders",)))
        asked = Request("r1", "ann", world.clock.wall_us(), ("orders",))
        assert (await world.catalog.pipeline("shop")).request == asked
        await world.lease(trigger=request("r1"))
        assert (await world.catalog.pipeline("shop")).request == asked

    async def test_a_newer_request_replaces_the_older(self, world: World) -> None:
        await world.edit(RequestRun("shop", "r1"))
        await world.edit(RequestRun("shop", "r2"))
        asked = (await world.catalog.pipeline("shop")).request
        assert asked is not None
        assert asked.id == "r2"

    async def test_a_request_ends_a_parking_and_a_wait_for_a_retry(self, world: World) -> None:
        await world.run("shop", Outcome.FAILED, park="broken", retry_at=9, retry_streams=("a",))
        await world.edit(RequestRun("shop", "r1"))
        state = await world.catalog.pipeline("shop")
        assert (state.parked, state.failures) == (None, 1)
        assert (state.retry_at, state.retry_streams) == (None, ())

    async def test_cancel_names_the_open_run(self, world: World) -> None:
        lease = await world.lease()
        await world.edit(CancelRun("shop"))
        assert (await world.catalog.pipeline("shop")).cancel == lease.epoch

    async def test_cancel_without_such_an_open_run_is_refused(self, world: World) -> None:
        await refused(world, NotFound, CancelRun("shop"))
        run = await world.run("shop")
        with pytest.raises(NotFound, match="has no open run to cancel"):
            await world.edit(CancelRun("shop"))
        await world.lease()
        await refused(world, NotFound, CancelRun("shop", run.epoch))
        with pytest.raises(NotFound, match=f"has no open run {run.epoch} to cancel"):
            await world.edit(CancelRun("shop", run.epoch))

    async def test_cancel_does_not_end_the_run_by_itself(self, world: World) -> None:
        lease = await world.lease()
        await world.edit(CancelRun("shop", lease.epoch))
        await world.commit(lease, batch())
        await world.finish(lease, Outcome.CANCELLED)

    @pytest.mark.parametrize("answer", ["approved", "rejected"])
    async def test_an_answer_to_a_schema_change_is_recorded_and_ends_the_hold(
        self, world: World, answer: Any
    ) -> None:
        await world.hold(schema_hold("f2"))
        await world.edit(AnswerSchema("shop", "orders", "f2", answer), why="agreed")
        (stream,) = await world.catalog.streams("shop")
        assert stream.hold is None
        assert (await world.catalog.pipeline("shop")).held == ()
        assert await world.catalog.decisions("shop", "orders") == (
            Decision(
                stream="orders",
                from_version=1,
                fingerprint="f2",
                answer=answer,
                changes=schema_hold().detail,
                by="ann",
                why="agreed",
                at=world.clock.wall_us(),
            ),
        )

    async def test_every_answer_is_kept(self, world: World) -> None:
        for number in ("f2", "f3"):
            await world.hold(schema_hold(number))
            await world.edit(AnswerSchema("shop", "orders", number, "approved"))
        found = await world.catalog.decisions("shop", "orders")
        assert [decision.fingerprint for decision in found] == ["f2", "f3"]

    async def test_a_stale_answer_is_refused(self, world: World) -> None:
        await world.hold(schema_hold("f2"))
        await world.hold(schema_hold("f3"))
        await refused(world, Stale, AnswerSchema("shop", "orders", "f2", "approved"))
        await world.edit(AnswerSchema("shop", "orders", "f3", "approved"))

    async def test_an_answer_without_a_question_is_refused(self, world: World) -> None:
        answer = AnswerSchema("shop", "orders", "f2", "approved")
        await refused(world, NotFound, answer)
        await world.hold(Hold(HoldKind.NULL_KEY, "null", 1, ("release",)))
        await refused(world, NotFound, answer)
        await world.hold(schema_hold("f2"))
        await world.edit(answer)
        await refused(world, NotFound, answer)

    async def test_a_schema_may_be_answered_while_a_run_is_under_way(self, world: World) -> None:
        await world.hold(schema_hold("f2"))
        lease = await world.lease()
        await world.edit(AnswerSchema("shop", "orders", "f2", "approved"))
        await world.commit(lease, batch())


@pytest.mark.anyio
class TestStreamEdits:
    @pytest.mark.parametrize("action", STREAM_EDITS, ids=named)
    async def test_an_edit_during_a_run_is_refused(self, world: World, action: EditAction) -> None:
        await published(world, batch())
        lease = await world.lease()
        await refused(world, Leased, action)
        with pytest.raises(Leased, match="and would overwrite the edit; cancel the run or wait"):
            await world.edit(action)
        await world.finish(lease)
        await world.edit(action)

    @pytest.mark.parametrize("action", [*STREAM_EDITS, CancelRun("shop")], ids=named)
    async def test_an_edit_takes_a_lapsed_lease_away(
        self, world: World, action: EditAction
    ) -> None:
        """Its late holder would overwrite the edit otherwise."""
        await published(world, batch())
        lease = await world.lease()
        world.lapse()
        await world.edit(action)
        state = await world.catalog.pipeline("shop")
        assert (state.holder, state.epoch) == ("", lease.epoch)
        run = await world.catalog.run(lease.epoch)
        assert run is not None
        assert (run.outcome, run.finished_at) == (Outcome.INTERRUPTED, world.clock.wall_us())
        assert "ann" in run.reason
        assert (await world.renew(lease, holder=ALPHA)).lost == (lease,)

    @pytest.mark.parametrize("action", STREAM_EDITS, ids=named)
    async def test_an_edit_ends_the_hold_of_its_stream_only(
        self, world: World, action: EditAction
    ) -> None:
        await world.hold(schema_hold(), "orders")
        await world.hold(schema_hold(), "items")
        await world.edit(action)
        assert (await world.catalog.pipeline("shop")).held == ("items",)
        assert [s.hold for s in await world.catalog.streams("shop")] == [schema_hold(), None]

    async def test_the_streams_that_stay_held_are_listed_by_name(self, world: World) -> None:
        for name in ("d", "f", "b", "a", "e", "c"):
            await world.hold(schema_hold(), name)
        await world.edit(Release("shop", "c"))
        assert (await world.catalog.pipeline("shop")).held == ("a", "b", "d", "e", "f")

    @pytest.mark.parametrize("action", [Adopt("shop", "orders"), Release("shop", "orders")])
    async def test_an_unknown_stream_is_refused(self, world: World, action: EditAction) -> None:
        await refused(world, NotFound, action)
        await world.lease()
        await refused(world, NotFound, action)

    @pytest.mark.parametrize(
        "action", [Refresh("shop", "orders"), SetCursor("shop", "orders", cursor(1))]
    )
    async def test_refresh_and_set_cursor_create_what_is_unknown(
        self, world: World, action: EditAction
    ) -> None:
        await world.edit(action)
        assert (await world.catalog.pipeline("shop")).version > 0
        assert (await the_stream(world)).seq == 0

    @pytest.mark.parametrize(
        "action", [SetCursor("shop", "orders", cursor(1)), Adopt("shop", "orders")]
    )
    async def test_a_cursor_is_not_edited_while_a_batch_is_unpublished(
        self, world: World, action: EditAction
    ) -> None:
        await world.run("shop", Outcome.SUCCEEDED, batch(0), batch(0, "items"))
        await refused(world, Unpublished, action)
        with pytest.raises(Unpublished, match="not yet published; run the pipeline once, then"):
            await world.edit(action)
        lease = await world.lease()
        await world.finish(lease, Outcome.NOTHING_NEW, published=(("orders", 1),))
        await world.edit(action)

    async def test_the_pipelines_cursor_waits_for_all_its_streams(self, world: World) -> None:
        await world.run("shop", Outcome.SUCCEEDED, batch(0), batch(0, "items"))
        action = SetCursor("shop", PIPELINE_SCOPE, cursor(1))
        await refused(world, Unpublished, action)
        lease = await world.lease()
        await world.finish(lease, Outcome.NOTHING_NEW, published=(("orders", 1), ("items", 1)))
        await world.edit(action)

    async def test_a_refresh_may_be_asked_while_a_batch_is_unpublished(self, world: World) -> None:
        await world.run("shop", Outcome.SUCCEEDED, batch(cursor=cursor(5)))
        await world.edit(Refresh("shop", "orders"))
        stream = await the_stream(world)
        assert (stream.directive, stream.cursor, stream.seq) == ("refresh", cursor(5), 1)

    async def test_a_set_cursor_goes_anywhere(self, world: World) -> None:
        await published(world, batch(cursor=cursor(5)))
        await world.edit(SetCursor("shop", "orders", cursor(1, definition="another")))
        stream = await the_stream(world)
        assert (stream.cursor, stream.seq, stream.published) == (
            cursor(1, definition="another"),
            1,
            1,
        )
        await world.edit(SetCursor("shop", "orders", None))
        assert await world.catalog.cursor("shop", "orders") is None

    async def test_a_set_cursor_may_raise_the_seq_to_the_markers(self, world: World) -> None:
        await published(world, batch(cursor=cursor(5)))
        await world.edit(SetCursor("shop", "orders", cursor(9), seq_at_least=7))
        stream = await the_stream(world)
        assert (stream.seq, stream.published) == (7, 7)
        await world.edit(SetCursor("shop", "orders", cursor(9), seq_at_least=3))
        assert (await the_stream(world)).seq == 7
        (row,) = await world.commit(await world.lease(), batch(7))
        assert (row.seq, row.published) == (8, False)

    async def test_adopt_asks_the_next_run_to_set_the_marker(self, world: World) -> None:
        await published(world, batch(cursor=cursor(5)))
        await world.edit(Adopt("shop", "orders"))
        stream = await the_stream(world)
        assert (stream.directive, stream.cursor, stream.seq) == ("adopt", cursor(5), 1)

    async def test_what_was_seen_of_the_destination_ends_with_its_adoption(
        self, world: World
    ) -> None:
        await published(world, batch(cursor=cursor(5)))
        rewind = SetCursor("shop", "orders", cursor(1), adopt=True, seen="batch 3")
        for action, seen in (
            (Adopt("shop", "orders", "batch 1"), "batch 1"),
            (Release("shop", "orders"), "batch 1"),
            (SetCursor("shop", "orders", cursor(1), seen="batch 2"), "batch 1"),
            (rewind, "batch 3"),
            (Adopt("shop", "orders"), ""),
            (rewind, "batch 3"),
            (Refresh("shop", "orders"), ""),
            (SetCursor("shop", "orders", cursor(1), seen="batch 2"), ""),
            (Adopt("shop", "orders", "batch 4"), "batch 4"),
        ):
            await world.edit(action)
            assert (await the_stream(world)).seen == seen
        lease = await world.lease()
        await world.commit(lease, batch(1))
        assert (await the_stream(world)).seen == "batch 4"
        await world.finish(lease, Outcome.SUCCEEDED, result(adopted=True))
        assert (await the_stream(world)).seen == ""

    async def test_what_later_batches_brought_can_be_struck_from_the_ledger(
        self, world: World
    ) -> None:
        def entry(path: str, seq: int = 0) -> FileEntry:
            return FileEntry(path, 1, 2, 3, 4, "hash", seq)

        async def ledger() -> dict[str, int]:
            return {f.path: f.seq for f in await world.catalog.files("shop", "orders")}

        lease = await world.lease()
        await world.commit(lease, batch(0, files=(entry("a"), entry("b"))))
        await world.commit(lease, batch(1, files=(entry("c"),)))
        # Moved and unknown numbers: content keeps its batch, and none is of a batch to come.
        await world.commit(lease, batch(2, files=(entry("d", 1), entry("e", 9)), forgotten=("a",)))
        assert await ledger() == {"b": 1, "c": 2, "d": 1, "e": 3}
        await world.finish(lease, published=(("orders", 3),))
        await world.edit(SetCursor("shop", "orders", cursor(1)))
        assert len(await ledger()) == 4
        assert (await the_stream(world)).ledger_from == 0
        await world.edit(SetCursor("shop", "orders", cursor(1), 5, forget_after=1))
        assert await ledger() == {"b": 1, "d": 1}
        assert (await the_stream(world)).ledger_from == 5
        lease = await world.lease()
        await world.commit(lease, batch(5, files=(entry("c"),)))
        assert (await the_stream(world)).ledger_from == 5
        await world.commit(lease, batch(6, files=(entry("b", 1),), replaces=True))
        assert await ledger() == {"b": 7}
        assert (await the_stream(world)).ledger_from == 7

    async def test_the_newest_wish_for_the_next_run_counts(self, world: World) -> None:
        set_cursor = SetCursor("shop", "orders", cursor(1))
        for action, directive in (
            (Refresh("shop", "orders"), "refresh"),
            (set_cursor, ""),
            (Adopt("shop", "orders"), "adopt"),
            (set_cursor, "adopt"),
            (Refresh("shop", "orders"), "refresh"),
            (SetCursor("shop", "orders", cursor(1), adopt=True), "adopt"),
            (Release("shop", "orders"), "adopt"),
        ):
            await world.edit(action)
            assert (await the_stream(world)).directive == directive

    async def test_an_edit_of_a_lapsed_pipeline_opens_no_run(self, world: World) -> None:
        await world.lease()
        world.lapse()
        await world.edit(Refresh("shop", "orders"))
        assert await world.catalog.runs(RunQuery(open_only=True)) == ()


SHOP_IS_STORE = Rename("store", "shop")


async def a_past(world: World) -> None:
    """``shop`` has two streams, one with a batch that is not published, files, schemas, runs."""
    files = (FileEntry("a.csv", 1, 2, 3, 4, "hash", 1),)
    first = batch(schema=schema(1), files=files, cursor=cursor(5))
    await world.run("shop", Outcome.SUCCEEDED, first, batch(0, "lines"), published=(("orders", 1),))
    await world.hold(schema_hold())
    await world.edit(AnswerSchema("shop", "orders", "f2", "approved"))


@pytest.mark.anyio
class TestRenaming:
    """``Rename``: all that is known by one name is known by another, and nothing is lost."""

    async def test_all_that_is_known_goes_along(self, world: World) -> None:
        await a_past(world)
        await world.run("till")
        before = await dump(world.catalog)
        await world.edit(SHOP_IS_STORE)
        after = await dump(world.catalog)
        mine = [key for key in before if key == "shop" or key.startswith(("shop.", "shop "))]
        for key in (key for key in mine if key != "shop"):
            expected = [named_anew(record) for record in as_list(before[key])]
            assert as_list(after[key.replace("shop", "store", 1)]) == expected, key
        assert [run.pipeline for run in after["runs"]] == ["till", "store", "store"]
        assert after["till"] == before["till"]
        was, now = before["shop"], after["store"]
        assert now == replace(
            was, name="store", version=now.version, change=now.change, origin="shop"
        )
        assert now.version > was.version
        assert now.change > was.change

    async def test_news_that_others_consumed_are_of_the_new_name(self, world: World) -> None:
        """Else they wait until another pipeline by the old name has brought more than it did."""
        await a_past(world)
        news = Trigger(TriggerKind.AFTER, news=(("shop", 20), ("shopping", 3)))
        await world.run("till", trigger=news)
        before = await world.catalog.pipeline("till")
        await world.edit(SHOP_IS_STORE)
        after = await world.catalog.pipeline("till")
        assert after.after_seen == (("shopping", 3), ("store", 20))
        assert after.version == before.version + 1

    async def test_the_old_name_is_free_and_never_taken_for_the_new_one(self, world: World) -> None:
        await a_past(world)
        version = (await world.catalog.pipeline("shop")).version
        await world.edit(SHOP_IS_STORE)
        old = await world.catalog.pipeline("shop")
        assert (old.epoch, old.rows, old.held, old.last_outcome) == (0, 0, (), None)
        assert old.paused is not None, "for who has not heard of the new name"
        assert "'store'" in old.paused.why
        assert old.origin == f"shop~{version}"
        assert await world.catalog.streams("shop") == ()
        await world.run("shop", Outcome.SUCCEEDED, batch())
        await world.edit(Rename("branch", "shop"))
        origins = {(await world.catalog.pipeline(n)).origin for n in ("shop", "store", "branch")}
        assert len(origins) == 3

    async def test_a_name_may_come_back(self, world: World) -> None:
        await a_past(world)
        streams = await world.catalog.streams("shop")
        await world.edit(SHOP_IS_STORE)
        await world.edit(Rename("shop", "store"))
        assert await world.catalog.streams("shop") == streams
        back = await world.catalog.pipeline("shop")
        assert (back.origin, back.paused) == ("shop", None)
        assert await world.catalog.streams("store") == ()

    async def test_what_never_ran_goes_along_too_and_no_origin_comes_again(
        self, world: World
    ) -> None:
        origins = set()
        for name in ("store", "branch", "stall"):
            await world.edit(SetCursor("shop", "orders", cursor(5)))
            await world.edit(Pause("shop"))
            await world.edit(Rename(name, "shop"))
            now = await world.catalog.pipeline(name)
            origins.add(now.origin)
            assert now.paused
            assert not now.is_vacant
            assert await world.catalog.cursor(name, "orders") == cursor(5)
            assert (await world.catalog.pipeline("shop")).is_vacant
            await world.run("shop")
        assert len(origins) == 3

    async def test_a_renamed_pipeline_goes_on_where_it_stood(self, world: World) -> None:
        await a_past(world)
        await world.edit(SHOP_IS_STORE)
        lease = await world.lease("store")
        (done,) = await world.commit(lease, batch(1, cursor=cursor(6)))
        assert (done.pipeline, done.seq) == ("store", 2)
        waiting = await world.catalog.commits("store", unpublished=True)
        assert [(c.stream, c.seq) for c in waiting] == [("lines", 1), ("orders", 2)]
        await world.finish(lease)

    async def test_who_held_the_old_name_is_fenced(self, world: World) -> None:
        lease = await world.lease()
        await world.commit(lease, batch())
        world.lapse()
        await world.edit(SHOP_IS_STORE)
        for late in (lease, replace(lease, pipeline="store")):
            with pytest.raises(Fenced):
                await world.commit(late, batch(1))
        (run,) = await world.catalog.runs(RunQuery(pipeline="store"))
        assert run.outcome is Outcome.INTERRUPTED

    async def test_a_run_under_way_is_waited_for(self, world: World) -> None:
        lease = await world.lease()
        await refused(world, Leased, SHOP_IS_STORE)
        await world.finish(lease)
        await world.lease("store")
        await refused(world, Leased, SHOP_IS_STORE)
        world.lapse()
        await refused(world, Leased, SHOP_IS_STORE)

    async def test_a_name_with_batches_of_its_own_is_refused(self, world: World) -> None:
        await a_past(world)
        await world.run("store", Outcome.SUCCEEDED, batch())
        await refused(world, Stale, SHOP_IS_STORE)

    async def test_a_name_that_was_held_before_it_committed_is_taken_over(
        self, world: World
    ) -> None:
        await a_past(world)
        await world.hold(schema_hold(), name="store")
        await world.edit(Pause("store"))
        await world.edit(RequestRun("store", "now"))
        held = await world.catalog.pipeline("store")
        await world.edit(SHOP_IS_STORE)
        now = await world.catalog.pipeline("store")
        assert (now.held, now.paused, now.request) == ((), held.paused, held.request)
        assert (now.epoch, now.rows) == (held.epoch, 20)

    async def test_nothing_to_rename_is_refused(self, world: World) -> None:
        await refused(world, NotFound, SHOP_IS_STORE)
        await a_past(world)
        await refused(world, BadRequest, Rename("shop", "shop"))
        await world.edit(SHOP_IS_STORE)
        await refused(world, NotFound, SHOP_IS_STORE)


def as_list(found: Any) -> list[Any]:
    return list(found) if isinstance(found, tuple) else [found]


def named_anew(record: Any) -> Any:
    return replace(record, pipeline="store") if hasattr(record, "pipeline") else record
