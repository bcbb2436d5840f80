"""``commit``: the commit point (B1-B6, C4, C6, F, rules 2 and 4)."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from catalog.conformance.kit import (
    BETA,
    World,
    batch,
    cursor,
    dump,
    result,
    schema,
    schema_hold,
    token,
)
from catalog.errors import (
    BadRequest,
    Conflict,
    Fenced,
    Refused,
    StreamHeld,
    Unpublished,
)
from catalog.records import (
    MAX_UNPUBLISHED,
    PIPELINE_SCOPE,
    Batch,
    Commit,
    CursorKind,
    Decision,
    FileEntry,
    Lease,
    Outcome,
    Pause,
    Refresh,
    SetCursor,
    StreamState,
)


async def refused(
    world: World, lease: Lease, error: type[Refused], *batches: Batch, **more: Any
) -> None:
    """The commit is refused and changes nothing."""
    before = await dump(world.catalog)
    with pytest.raises(error, match=lease.pipeline):
        await world.commit(lease, *batches, **more)
    assert await dump(world.catalog) == before


def entry(path: str, content: str = "hash") -> FileEntry:
    return FileEntry(path, 1, 2, 3, 4, content)


async def paths(world: World) -> list[tuple[str, int]]:
    return [(file.path, file.seq) for file in await world.catalog.files("shop", "orders")]


@pytest.mark.anyio
class TestCommit:
    async def test_a_commit_records_receipt_cursor_counts_and_schema_at_once(
        self, world: World
    ) -> None:
        lease = await world.lease()
        sealed = batch(cursor=cursor(7), schema=schema(1), rejected=2, data_at=70)
        (row,) = await world.commit(lease, sealed)
        assert row == Commit(
            pipeline="shop",
            stream="orders",
            seq=1,
            epoch=lease.epoch,
            receipt=sealed.receipt,
            rows=10,
            bytes=100,
            rejected=2,
            schema_version=1,
            committed_at=world.clock.wall_us(),
            cursor=cursor(7),
        )
        assert await world.catalog.commits("shop") == (row,)
        assert await world.catalog.cursor("shop", "orders") == cursor(7)
        assert await world.catalog.streams("shop") == (
            StreamState(
                "shop",
                "orders",
                seq=1,
                cursor=cursor(7),
                schema_version=1,
                committed_by=lease.epoch,
                data_at=70,
                rows=10,
            ),
        )
        state = await world.catalog.pipeline("shop")
        assert (state.rows, state.rejected, state.data_at) == (10, 2, 70)
        run = await world.catalog.run(lease.epoch)
        assert run is not None
        assert (run.rows, run.bytes, run.rejected) == (10, 100, 2)

    async def test_a_commit_is_there_after_a_restart(self, world: World) -> None:
        await world.commit(
            await world.lease(), batch(cursor=cursor(7), schema=schema(1), files=(entry("a"),))
        )
        before = await dump(world.catalog)
        await world.restart()
        assert await dump(world.catalog) == before

    async def test_a_commit_must_follow_the_last_one(self, world: World) -> None:
        lease = await world.lease()
        await refused(world, lease, Conflict, batch(1))
        await world.commit(lease, batch(0))
        await refused(world, lease, Conflict, batch(0))
        await refused(world, lease, Conflict, batch(2))
        await world.commit(lease, batch(1))

    @pytest.mark.parametrize("kind", list(CursorKind))
    async def test_every_cursor_kind_compares_and_swaps(
        self, world: World, kind: CursorKind
    ) -> None:
        lease = await world.lease()
        await world.commit(lease, batch(0, cursor=cursor(1, kind)))
        await refused(world, lease, Conflict, batch(0, cursor=cursor(2, kind)))
        assert await world.catalog.cursor("shop", "orders") == cursor(1, kind)

    async def test_two_attempts_under_one_epoch_do_not_double_rows(self, world: World) -> None:
        """Both would move forward; only the seq tells that the second is one too many."""
        lease = await world.lease()
        await world.commit(lease, batch(0, cursor=cursor(5)))
        await refused(world, lease, Conflict, batch(0, cursor=cursor(6)))

    async def test_batches_of_one_call_follow_each_other(self, world: World) -> None:
        lease = await world.lease()
        rows = await world.commit(lease, batch(0), batch(0, "items"), batch(1))
        assert [(row.stream, row.seq) for row in rows] == [
            ("orders", 1),
            ("items", 1),
            ("orders", 2),
        ]

    async def test_all_batches_are_recorded_or_none(self, world: World) -> None:
        lease = await world.lease()
        await refused(
            world,
            lease,
            Conflict,
            batch(0, schema=schema(1), files=(entry("a"),), cursor=cursor(1)),
            batch(0, "items"),
            batch(7, "items"),
            published={"orders": 1},
        )

    async def test_streams_and_pipelines_do_not_share_a_seq(self, world: World) -> None:
        await world.commit(await world.lease("a"), batch(0), batch(0, "items"))
        await world.commit(await world.lease("b"), batch(0))
        assert [s.seq for s in await world.catalog.streams("a")] == [1, 1]
        assert [row.pipeline for row in await world.catalog.commits("b")] == ["b"]
        assert await world.catalog.commits("a", "nowhere") == ()

    async def test_a_batch_without_a_cursor_leaves_it(self, world: World) -> None:
        lease = await world.lease()
        await world.commit(lease, batch(0, cursor=cursor(7)), batch(1))
        assert await world.catalog.cursor("shop", "orders") == cursor(7)

    async def test_counts_are_summed(self, world: World) -> None:
        lease = await world.lease()
        await world.commit(lease, batch(0, data_at=50, rejected=1))
        await world.commit(lease, batch(1, data_at=40, rejected=2))
        (stream,) = await world.catalog.streams("shop")
        state = await world.catalog.pipeline("shop")
        assert (stream.rows, stream.data_at) == (20, 50)
        assert (state.rows, state.data_at, state.rejected) == (20, 50, 3)
        await world.commit(lease, batch(2))
        assert (await world.catalog.pipeline("shop")).data_at == 50

    async def test_a_call_counts_all_its_batches_and_is_as_new_as_the_newest(
        self, world: World
    ) -> None:
        ages = (40, 50, 30, None)
        sealed = [
            batch(follows, data_at=data_at, rejected=1) for follows, data_at in enumerate(ages)
        ]
        lease = await world.lease()
        await world.commit(lease, *sealed)
        (stream,) = await world.catalog.streams("shop")
        state, run = await world.catalog.pipeline("shop"), await world.catalog.run(lease.epoch)
        assert run is not None
        assert stream.data_at == state.data_at == 50
        assert stream.rows == state.rows == run.rows == 40
        assert (state.rejected, run.rejected, run.bytes) == (4, 4, 400)

    async def test_data_as_old_as_the_clocks_beginning_has_a_time(self, world: World) -> None:
        """0 is a moment like any other, and the later one of it and -5."""
        lease = await world.lease()
        await world.commit(lease, batch(data_at=0))
        await world.commit(lease, batch(1, data_at=-5))
        (stream,) = await world.catalog.streams("shop")
        assert (stream.data_at, (await world.catalog.pipeline("shop")).data_at) == (0, 0)

    async def test_a_commit_of_nothing_still_needs_the_lease(self, world: World) -> None:
        lease = await world.lease()
        assert await world.commit(lease) == ()
        await world.finish(lease)
        with pytest.raises(Fenced):
            await world.commit(lease)

    async def test_an_open_run_counts_what_it_committed_and_nothing_else(
        self, world: World
    ) -> None:
        async def counts(lease: Lease) -> tuple[int, int, int]:
            run = await world.catalog.run(lease.epoch)
            assert run is not None
            return run.rows, run.bytes, run.rejected

        await world.run("shop", Outcome.SUCCEEDED, batch(0, rejected=1))
        lease = await world.lease()
        assert await counts(lease) == (0, 0, 0)
        await world.commit(lease, batch(1, rejected=2))
        await world.edit(Pause("shop"))
        assert await counts(lease) == (10, 100, 2)
        await world.commit(lease, batch(2, rejected=3))
        assert await counts(lease) == (20, 200, 5)
        world.lapse()
        again = await world.lease(holder=BETA)
        assert (await counts(again), await counts(lease)) == ((0, 0, 0), (20, 200, 5))

    async def test_a_replaced_streams_data_is_as_old_as_what_replaced_it(
        self, world: World
    ) -> None:
        lease = await world.lease()
        await world.commit(lease, batch(0, data_at=50))
        for follows, data_at in ((1, 40), (2, None)):
            await world.commit(lease, batch(follows, data_at=data_at, replaces=True))
            (stream,) = await world.catalog.streams("shop")
            assert stream.data_at == data_at
        assert (await world.catalog.pipeline("shop")).data_at == 50

    async def test_a_held_stream_takes_no_batch(self, world: World) -> None:
        await world.hold(schema_hold())
        lease = await world.lease()
        await refused(world, lease, StreamHeld, batch(0))
        await refused(world, lease, StreamHeld, batch(0, replaces=True))
        await world.commit(lease, batch(0, "items"))

    async def test_the_receipt_is_kept_as_it_is(self, world: World) -> None:
        receipt = '{"näme": "ü\\u0000 ☃", "n": 1.0, "list": [1,  2]}'
        await world.commit(await world.lease(), batch(0, receipt=receipt))
        await world.restart()
        (row,) = await world.catalog.commits("shop")
        assert row.receipt == receipt

    async def test_a_batch_of_a_stream_has_a_receipt(self, world: World) -> None:
        lease = await world.lease()
        await refused(world, lease, BadRequest, batch(0, receipt=""))
        await world.commit(lease, batch(0))
        await refused(world, lease, BadRequest, batch(1, receipt=""))

    async def test_the_pipelines_own_cursor_has_no_receipt_and_nothing_to_publish(
        self, world: World
    ) -> None:
        lease = await world.lease()
        await refused(world, lease, BadRequest, batch(0, PIPELINE_SCOPE))
        moved = Batch(PIPELINE_SCOPE, 0, "", cursor=token("lsn"))
        rows = await world.commit(lease, batch(0), moved)
        assert [row.published for row in rows] == [False, True]
        await refused(world, lease, BadRequest, batch(1, PIPELINE_SCOPE))
        for follows in range(1, MAX_UNPUBLISHED + 2):
            await world.commit(lease, replace(moved, follows=follows))
        unpublished = await world.catalog.commits("shop", unpublished=True)
        assert [row.stream for row in unpublished] == ["orders"]
        assert await world.catalog.cursor("shop", PIPELINE_SCOPE) == token("lsn")

    async def test_the_ledger_of_files_takes_changed_rows_only(self, world: World) -> None:
        lease = await world.lease()
        await world.commit(lease, batch(0, files=(entry("b"), entry("a"))))
        await world.commit(lease, batch(1, files=(entry("c"), entry("a", "new"))))
        assert await paths(world) == [("a", 2), ("b", 1), ("c", 2)]
        assert (await world.catalog.files("shop", "orders"))[0].hash == "new"

    async def test_a_moved_file_is_forgotten_under_its_old_path(self, world: World) -> None:
        lease = await world.lease()
        await world.commit(lease, batch(0, files=(entry("a"), entry("b"))))
        await world.commit(lease, batch(1, files=(entry("c"),), forgotten=("a", "never")))
        assert await paths(world) == [("b", 1), ("c", 2)]

    async def test_the_ledger_says_which_run_brought_what_and_is_struck_by_it(
        self, world: World
    ) -> None:
        async def ledger() -> dict[str, tuple[int, int]]:
            return {f.path: (f.seq, f.epoch) for f in await world.catalog.files("shop", "orders")}

        first = await world.lease()
        await world.commit(first, batch(0, files=(entry("a"),)))
        await world.finish(first, published=(("orders", 1),))
        second = await world.lease()
        moved = replace(entry("moved"), seq=1, epoch=first.epoch)
        await world.commit(second, batch(1, files=(entry("b"), moved), forgotten=("a",)))
        await world.finish(second, published=(("orders", 2),))
        assert await ledger() == {"moved": (1, first.epoch), "b": (2, second.epoch)}
        for later, left in ((second.epoch, 2), (first.epoch, 1), (first.epoch - 1, 0)):
            back = SetCursor("shop", "orders", cursor(1), forget_after=2, forget_later=later)
            await world.edit(back)
            assert len(await ledger()) == left

    async def test_a_replacing_batch_starts_the_ledger_anew(self, world: World) -> None:
        lease = await world.lease()
        await world.commit(
            lease, batch(0, files=(entry("a"),)), batch(0, "items", files=(entry("a"),))
        )
        other = await world.lease("other")
        await world.commit(other, batch(0, files=(entry("a"),)))
        await world.commit(lease, batch(1, files=(entry("b"),), replaces=True))
        assert await paths(world) == [("b", 2)]
        assert len(await world.catalog.files("shop", "items")) == 1
        assert len(await world.catalog.files("other", "orders")) == 1

    async def test_a_replacing_batch_answers_a_refresh(self, world: World) -> None:
        await world.edit(Refresh("shop", "orders"))
        lease = await world.lease()
        await world.commit(lease, batch(0))
        assert (await world.catalog.streams("shop"))[0].directive == "refresh"
        await world.commit(lease, batch(1, replaces=True))
        assert (await world.catalog.streams("shop"))[0].directive == ""

    async def test_a_replacing_batch_leaves_a_directive_adopt(self, world: World) -> None:
        await world.edit(SetCursor("shop", "orders", cursor(1), adopt=True))
        await world.commit(await world.lease(), batch(0, replaces=True))
        assert (await world.catalog.streams("shop"))[0].directive == "adopt"

    async def test_decisions_by_policy_come_with_the_first_batch_that_uses_them(
        self, world: World
    ) -> None:
        decision = Decision("orders", 1, "f2", "approved", "[]", "policy", "widen")
        lease = await world.lease()
        await world.commit(lease, batch(0, decisions=(decision,)))
        stamped = replace(decision, at=world.clock.wall_us())
        assert await world.catalog.decisions("shop", "orders") == (stamped,)
        await refused(world, lease, BadRequest, batch(0, "items", decisions=(decision,)))


@pytest.mark.anyio
class TestPublishing:
    async def test_the_mark_moves_forward_only(self, world: World) -> None:
        lease = await world.lease()
        await world.commit(lease, batch(0), batch(1))
        for mark, expected in ((1, 1), (0, 1), (2, 2), (1, 2)):
            await world.commit(lease, published={"orders": mark})
            (stream,) = await world.catalog.streams("shop")
            assert stream.published == expected

    async def test_the_mark_names_the_run_that_committed_its_batch(self, world: World) -> None:
        async def named() -> tuple[int, int]:
            (stream,) = await world.catalog.streams("shop")
            return stream.committed_by, stream.published_by

        first = await world.lease()
        await world.commit(first, batch(0), batch(1))
        assert await named() == (first.epoch, 0)
        await world.finish(first, published=(("orders", 1),))
        second = await world.lease()
        assert await named() == (first.epoch, first.epoch)
        await world.commit(second, batch(2), batch(3))
        await world.commit(second, batch(4), published={"orders": 2})
        assert await named() == (second.epoch, first.epoch)
        await world.commit(second, published={"orders": 4})
        assert await named() == (second.epoch, second.epoch)
        await world.finish(second)
        third = await world.lease()
        await world.commit(third, batch(5))
        await world.finish(third, published=(("orders", 5),))
        assert await named() == (third.epoch, second.epoch)
        fourth = await world.lease()
        await world.finish(fourth, published=(("orders", 6),))
        assert await named() == (third.epoch, third.epoch)

    async def test_the_mark_never_passes_the_last_commit(self, world: World) -> None:
        lease = await world.lease()
        await world.commit(lease, batch(0), published={"orders": 5, "nowhere": 1})
        (stream,) = await world.catalog.streams("shop")
        assert (stream.stream, stream.published) == ("orders", 0)
        await world.commit(lease, published={"orders": 5})
        (stream,) = await world.catalog.streams("shop")
        assert stream.published == 1

    async def test_unpublished_batches_are_listed_in_the_order_to_publish_them(
        self, world: World
    ) -> None:
        lease = await world.lease()
        await world.commit(lease, batch(0), batch(0, "items"), batch(1), batch(2))
        await world.commit(lease, published={"orders": 1})
        rows = await world.catalog.commits("shop", unpublished=True)
        assert [(row.stream, row.seq) for row in rows] == [
            ("items", 1),
            ("orders", 2),
            ("orders", 3),
        ]
        rows = await world.catalog.commits("shop", "orders", unpublished=True, limit=1)
        assert [(row.seq, row.published) for row in rows] == [(2, False)]

    async def test_commits_say_whether_they_are_published(self, world: World) -> None:
        lease = await world.lease()
        await world.commit(lease, batch(0), batch(1))
        await world.commit(lease, published={"orders": 1})
        rows = await world.catalog.commits("shop")
        assert [(row.seq, row.published) for row in rows] == [(2, False), (1, True)]

    async def test_only_so_many_batches_wait_to_be_published(self, world: World) -> None:
        lease = await world.lease()
        for follows in range(MAX_UNPUBLISHED):
            await world.commit(lease, batch(follows))
        await refused(world, lease, Unpublished, batch(MAX_UNPUBLISHED))
        await world.commit(lease, batch(0, "items"))
        await world.commit(lease, batch(MAX_UNPUBLISHED), published={"orders": 1})

    async def test_a_mark_of_a_refused_commit_does_not_move(self, world: World) -> None:
        lease = await world.lease()
        await world.commit(lease, batch(0))
        await refused(world, lease, Conflict, batch(0), published={"orders": 1})

    async def test_finish_moves_the_mark_too(self, world: World) -> None:
        lease = await world.lease()
        await world.commit(lease, batch(0), batch(1))
        await world.finish(lease, Outcome.SUCCEEDED, result(), published=(("orders", 9),))
        (stream,) = await world.catalog.streams("shop")
        assert (stream.published, stream.last_outcome) == (2, Outcome.SUCCEEDED)
