"""Retention: what goes, and what must stay (A1, A9, B5)."""

from __future__ import annotations

import anyio
import pytest

from catalog.conformance.kit import (
    ALPHA,
    BETA,
    World,
    batch,
    cursor,
    dump,
    op,
    schema,
    schema_hold,
)
from catalog.records import (
    AnswerSchema,
    FileEntry,
    Outcome,
    Pause,
    Resume,
    Retention,
    RunQuery,
)


async def three_old_runs_and_a_newer_one(world: World) -> None:
    """Each of the three brought a batch."""
    for follows in range(3):
        published = (("orders", follows + 1),)
        await world.run("shop", Outcome.SUCCEEDED, batch(follows), published=published)
    await world.run("shop", Outcome.FAILED)
    world.clock.advance(1)


async def epochs(world: World) -> list[int]:
    return [run.epoch for run in await world.catalog.runs(RunQuery())]


async def seqs(world: World, stream: str = "orders") -> list[int]:
    return [row.seq for row in await world.catalog.commits("shop", stream)]


@pytest.mark.anyio
class TestRetention:
    async def test_old_runs_go_and_the_last_finished_one_stays(self, world: World) -> None:
        await world.run("shop")
        last = await world.run("shop", Outcome.FAILED)
        open_run = await world.lease("shop")
        other = await world.run("other")
        world.clock.advance(1)
        await world.retain_all()
        assert await epochs(world) == [other.epoch, open_run.epoch, last.epoch]

    async def test_runs_within_the_time_to_keep_stay(self, world: World) -> None:
        runs = []
        for _ in range(4):
            runs.append(await world.run("shop"))
            world.clock.advance(60)
        await world.retain(runs_before=runs[2].finished_at or 0)
        assert await epochs(world) == [runs[3].epoch, runs[2].epoch]

    async def test_published_commits_of_runs_that_went_go(self, world: World) -> None:
        for follows in range(3):
            await world.run(
                "shop",
                Outcome.SUCCEEDED,
                batch(follows),
                published=(("orders", follows + 1),),
            )
        await world.run("shop", Outcome.NOTHING_NEW)
        world.clock.advance(1)
        await world.retain_all()
        assert await seqs(world) == [3]

    async def test_commits_of_a_run_that_stays_stay(self, world: World) -> None:
        await world.run("shop", Outcome.SUCCEEDED, batch(0), batch(1), published=(("orders", 2),))
        world.clock.advance(1)
        await world.retain_all()
        assert await seqs(world) == [2, 1]

    async def test_unpublished_commits_stay(self, world: World) -> None:
        await world.run("shop", Outcome.FAILED, batch(0), published=(("orders", 1),))
        await world.run("shop", Outcome.FAILED, batch(1))
        await world.run("shop", Outcome.FAILED, batch(2))
        await world.run("shop", Outcome.FAILED)
        world.clock.advance(1)
        await world.retain_all()
        assert await seqs(world) == [3, 2]
        assert len(await world.catalog.commits("shop", unpublished=True)) == 2

    async def test_each_streams_last_commit_stays(self, world: World) -> None:
        await world.run(
            "shop",
            Outcome.SUCCEEDED,
            batch(0),
            batch(0, "items"),
            published=(("orders", 1), ("items", 1)),
        )
        await world.run("shop", Outcome.SUCCEEDED, batch(1), published=(("orders", 2),))
        await world.run("shop", Outcome.NOTHING_NEW)
        world.clock.advance(1)
        await world.retain_all()
        assert (await seqs(world), await seqs(world, "items")) == ([2], [1])

    async def test_recent_commits_of_folded_runs_stay(self, world: World) -> None:
        for follows in range(3):
            published = (("orders", follows + 1),)
            await world.run(
                "shop", Outcome.NOTHING_NEW, batch(follows, rows=0), published=published
            )
        await world.retain_all()
        assert await seqs(world) == [3, 2, 1]
        world.clock.advance(1)
        await world.retain_all()
        assert await seqs(world) == [3]

    async def test_a_commit_stays_as_long_as_it_may_be_an_answer(self, world: World) -> None:
        await three_old_runs_and_a_newer_one(world)
        while await world.retain(operations_before=0):
            pass
        assert (await seqs(world), len(await epochs(world))) == ([3, 2, 1], 1)
        await world.retain_all()
        assert await seqs(world) == [3]

    async def test_what_stays_does_not_hide_what_may_go(self, world: World) -> None:
        """The last run of a pipeline may be old, and its commits stay with it."""
        lease = await world.lease("quiet")
        for follows in range(0, 40, 4):
            sealed = [batch(follows + n) for n in range(4)]
            await world.commit(lease, *sealed, published={"orders": follows})
        await world.finish(lease, published=(("orders", 40),))
        await three_old_runs_and_a_newer_one(world)
        while await world.retain(limit=1):
            pass
        assert await seqs(world) == [3]
        assert len(await world.catalog.commits("quiet")) == 40

    async def test_a_commit_stays_while_an_older_one_of_its_stream_does(self, world: World) -> None:
        lease = await world.lease()
        await world.commit(lease, batch(0))
        world.clock.jump_wall(3600)
        await world.finish(lease, published=(("orders", 1),))
        world.clock.jump_wall(-3600)
        for follows in (1, 2):
            published = (("orders", follows + 1),)
            await world.run("shop", Outcome.SUCCEEDED, batch(follows), published=published)
        last = await world.run("shop", Outcome.FAILED)
        world.clock.advance(1)
        await world.retain_all()
        assert await epochs(world) == [last.epoch, lease.epoch]
        assert await seqs(world) == [3, 2, 1]

    async def test_schemas_decisions_the_ledger_and_cursors_stay(self, world: World) -> None:
        file = FileEntry("a", 1, 2, 3, 4, "hash")
        await world.run(
            "shop",
            Outcome.SUCCEEDED,
            batch(0, cursor=cursor(1), schema=schema(1), files=(file,)),
            batch(1, schema=schema(2)),
            published=(("orders", 2),),
        )
        await world.hold(schema_hold("f2"))
        await world.edit(AnswerSchema("shop", "orders", "f2", "approved"))
        await world.run("shop", Outcome.NOTHING_NEW)
        before = await dump(world.catalog)
        world.clock.advance(1)
        await world.retain_all()
        after = await dump(world.catalog)
        for part in ("schemas", "decisions", "files", "cursor"):
            assert after[f"shop.orders {part}"] == before[f"shop.orders {part}"] != ()
        assert after["changed"] == before["changed"]

    async def test_old_edits_go(self, world: World) -> None:
        await world.edit(Pause("shop"))
        world.clock.advance(1)
        kept = await world.edit(Resume("shop"))
        await world.retain()
        assert await world.catalog.edits() == (kept,)
        newer = await world.edit(Pause("shop"))
        assert newer.id > kept.id

    async def test_the_oldest_commits_go_first_once_their_runs_are_gone(self, world: World) -> None:
        await three_old_runs_and_a_newer_one(world)
        found = []
        for _ in range(5):
            assert await world.retain(limit=1) == 1
            found.append((len(await epochs(world)), await seqs(world)))
        assert found == [(n, [3, 2, 1]) for n in (3, 2, 1)] + [(1, [3, 2]), (1, [3])]

    async def test_the_oldest_edits_go_first(self, world: World) -> None:
        edits = []
        for name in ("a", "b", "c"):
            edits.append(await world.edit(Pause(name)))
            world.clock.advance(1)
        await world.retain(limit=1)
        assert await world.catalog.edits() == (edits[2], edits[1])

    async def test_an_edits_number_never_comes_again(self, world: World) -> None:
        first = await world.edit(Pause("shop"))
        world.clock.advance(1)
        await world.retain_all()
        await world.restart()
        assert (await world.edit(Pause("shop"))).id > first.id

    async def test_old_operations_go(self, world: World) -> None:
        same = op()
        await world.catalog.edit(same, "ann", "because", Pause("shop"))
        world.clock.advance(1)
        await world.retain(runs_before=0)
        await world.catalog.edit(same, "ann", "because", Pause("shop"))
        assert len(await world.catalog.edits()) == 2

    async def test_an_old_operation_goes_however_many_came_after_it(self, world: World) -> None:
        await world.edit(Pause("shop"))
        world.clock.advance(1)
        between = world.clock.wall_us()
        async with anyio.create_task_group() as tasks:
            for _ in range(1001):
                tasks.start_soon(world.renew)
        assert await world.retain(runs_before=0, operations_before=between) == 1
        assert await world.retain(runs_before=0, operations_before=between) == 0

    async def test_lapsed_holders_without_leases_go(self, world: World) -> None:
        await world.lease("shop")
        await world.renew(holder=BETA)
        await world.retain_all()
        assert [one.holder for one in await world.catalog.holders()] == [ALPHA, BETA]
        world.lapse()
        assert await world.retain(operations_before=0) == 1
        assert await world.retain(operations_before=0) == 0
        assert [one.holder for one in await world.catalog.holders()] == [ALPHA]

    async def test_one_call_deletes_at_most_so_many_rows(self, world: World) -> None:
        for outcome in (Outcome.SUCCEEDED, Outcome.FAILED) * 3:
            await world.run("shop", outcome)
        world.clock.advance(1)
        keep = Retention(world.clock.wall_us(), 0, limit=2)
        gone = [await world.catalog.retain(op(), keep) for _ in range(4)]
        assert gone == [2, 2, 1, 0]

    async def test_runs_and_their_commits_share_the_limit_of_a_call(self, world: World) -> None:
        await three_old_runs_and_a_newer_one(world)
        found = []
        for _ in range(3):
            gone = await world.retain(limit=2)
            found.append((gone, len(await epochs(world)), await seqs(world)))
        assert found == [(2, 2, [3, 2, 1]), (2, 1, [3, 2]), (2, 1, [3])]

    async def test_lapsed_holders_count_towards_the_limit_too(self, world: World) -> None:
        for holder in (ALPHA, BETA):
            await world.renew(holder=holder)
        world.lapse()
        gone = [await world.retain(operations_before=0, limit=1) for _ in range(3)]
        assert gone == [1, 1, 0]
        assert await world.catalog.holders() == ()

    async def test_each_call_keeps_to_its_own_bounds(self, world: World) -> None:
        """Also when an earlier one, with others, has left some of what it might have deleted."""
        for outcome in (Outcome.SUCCEEDED, Outcome.FAILED) * 2:
            await world.run("shop", outcome)
        world.clock.advance(1)
        assert await world.retain(operations_before=0, limit=1) == 1
        assert await world.retain(runs_before=0, operations_before=0, limit=1) == 0
        assert await world.retain(operations_before=0, limit=1) == 1

    async def test_the_oldest_rows_go_first(self, world: World) -> None:
        runs = [await world.run("shop", o) for o in (Outcome.SUCCEEDED, Outcome.FAILED) * 2]
        world.clock.advance(1)
        await world.retain(limit=1)
        assert await epochs(world) == [run.epoch for run in reversed(runs[1:])]

    async def test_the_oldest_is_the_first_whatever_the_wall_clock_said(self, world: World) -> None:
        runs = []
        for outcome in (Outcome.SUCCEEDED, Outcome.FAILED) * 2:
            runs.append(await world.run("shop", outcome))
            world.clock.jump_wall(-60)
        world.clock.advance(600)
        await world.retain(limit=1)
        assert await epochs(world) == [run.epoch for run in reversed(runs[1:])]

    async def test_each_pipelines_last_finished_run_stays(self, world: World) -> None:
        runs = [await world.run(name) for name in ("a", "b", "a", "c")]
        world.clock.advance(1)
        await world.retain_all()
        assert await epochs(world) == [run.epoch for run in reversed(runs[1:])]

    async def test_nothing_goes_while_nothing_is_old(self, world: World) -> None:
        await world.run("shop", Outcome.SUCCEEDED, batch())
        await world.run("shop", Outcome.SUCCEEDED)
        await world.edit(Pause("shop"))
        before = await dump(world.catalog)
        assert await world.retain(runs_before=0, operations_before=0) == 0
        assert await dump(world.catalog) == before


@pytest.mark.anyio
class TestCheck:
    async def test_a_sound_catalog_has_no_problems(self, world: World) -> None:
        await world.run("shop", Outcome.SUCCEEDED, batch(cursor=cursor(1), schema=schema(1)))
        await world.hold(schema_hold(), "items")
        await world.lease("shop")
        assert await world.problems() == ()
