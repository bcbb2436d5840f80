"""Reading: what is there, in which order, and how changes are followed."""

from __future__ import annotations

import anyio
import pytest

from catalog.conformance.kit import (
    BETA,
    World,
    batch,
    cursor,
    dump,
    schema,
)
from catalog.records import (
    Claimed,
    Decision,
    FileEntry,
    Outcome,
    Pause,
    PipelineState,
    Resume,
    RunQuery,
)

SOON = 5.0
"""Seconds after which a wait has failed; a wait that works ends long before."""


@pytest.mark.anyio
class TestReading:
    async def test_an_empty_catalog_has_nothing_and_says_so(self, world: World) -> None:
        catalog = world.catalog
        assert await catalog.pipeline("shop") == PipelineState("shop")
        assert await catalog.changed(0) == ()
        assert await catalog.cursor("shop", "orders") is None
        assert await catalog.streams("shop") == ()
        assert await catalog.run(1) is None
        assert await catalog.runs(RunQuery()) == ()
        assert await catalog.commits("shop") == ()
        assert await catalog.commits("shop", unpublished=True) == ()
        assert await catalog.schemas("shop", "orders") == ()
        assert await catalog.decisions("shop", "orders") == ()
        assert await catalog.files("shop", "orders") == ()
        assert await catalog.edits() == ()
        assert await catalog.holders() == ()

    async def test_a_catalog_keeps_its_id(self, world: World) -> None:
        first = world.catalog.id
        assert first
        assert (await world.open()).id == first
        await world.restart()
        assert world.catalog.id == first

    async def test_reading_changes_nothing(self, world: World) -> None:
        await world.run("shop", Outcome.SUCCEEDED, batch(cursor=cursor(1)))
        assert await dump(world.catalog) == await dump(world.catalog)

    async def test_names_are_taken_as_they_are(self, world: World) -> None:
        names = ["a", "A", "a ", "ä", "a%", "a_", "a.b", "a'b", 'a"b', "☃"]
        for name in names:
            await world.run(name, Outcome.SUCCEEDED, batch(stream=name))
        assert [state.name for state in await world.catalog.changed(0)] == names
        for name in names:
            (stream,) = await world.catalog.streams(name)
            assert stream.stream == name

    async def test_a_write_is_seen_by_every_handle_at_once(self, world: World) -> None:
        other = await world.open()
        lease = await world.lease()
        await world.commit(lease, batch(cursor=cursor(1)))
        assert await other.cursor("shop", "orders") == cursor(1)
        await other.commit("1" * 32, lease, [batch(1, cursor=cursor(2))], {})
        assert await world.catalog.cursor("shop", "orders") == cursor(2)

    async def test_runs_come_newest_first_and_may_be_chosen(self, world: World) -> None:
        for name, outcome in (
            ("a", Outcome.SUCCEEDED),
            ("b", Outcome.FAILED),
            ("a", Outcome.FAILED),
            ("a", Outcome.SUCCEEDED),
        ):
            await world.run(name, outcome)
        open_run = await world.lease("b")

        async def epochs(query: RunQuery) -> list[int]:
            return [run.epoch for run in await world.catalog.runs(query)]

        fifth, fourth, third, second, first = everything = await epochs(RunQuery())
        assert everything == sorted(everything, reverse=True)
        assert fifth == open_run.epoch
        assert await epochs(RunQuery("a")) == [fourth, third, first]
        assert await epochs(RunQuery(outcome=Outcome.FAILED)) == [third, second]
        assert await epochs(RunQuery("a", Outcome.SUCCEEDED)) == [fourth, first]
        assert await epochs(RunQuery(open_only=True)) == [fifth]
        assert await epochs(RunQuery("a", open_only=True)) == []
        assert await epochs(RunQuery(limit=2)) == [fifth, fourth]
        assert await epochs(RunQuery(below_epoch=fourth, limit=2)) == [third, second]

    async def test_commits_come_newest_first(self, world: World) -> None:
        lease = await world.lease()
        await world.commit(lease, batch(0), batch(0, "items"))
        await world.commit(lease, batch(1))
        rows = await world.catalog.commits("shop")
        assert [(row.stream, row.seq) for row in rows] == [
            ("orders", 2),
            ("items", 1),
            ("orders", 1),
        ]
        rows = await world.catalog.commits("shop", "orders", limit=1)
        assert [(row.stream, row.seq) for row in rows] == [("orders", 2)]

    async def test_so_many_of_the_newest_commits_are_given(self, world: World) -> None:
        lease = await world.lease()
        for follows in range(4):
            await world.commit(lease, batch(follows), batch(follows, "items"))
        rows = await world.catalog.commits("shop", "orders", limit=3)
        assert [row.seq for row in rows] == [4, 3, 2]
        rows = await world.catalog.commits("shop", limit=3)
        assert [(row.stream, row.seq) for row in rows] == [
            ("items", 4),
            ("orders", 4),
            ("items", 3),
        ]

    async def test_streams_and_pipelines_are_read_apart(self, world: World) -> None:
        for name in ("a", "b"):
            for stream in ("orders", "items"):
                at = f"{name}.{stream}"
                await world.run(
                    name,
                    Outcome.SUCCEEDED,
                    batch(
                        stream=stream,
                        receipt=at,
                        schema=schema(1, at),
                        files=(FileEntry(at, 1, 2, 3, 4, "hash"),),
                        decisions=(Decision(stream, 0, at, "approved", "[]", "policy", ""),),
                    ),
                )
        catalog = world.catalog
        for name in ("a", "b"):
            receipts = [row.receipt for row in await catalog.commits(name)]
            assert receipts == [f"{name}.items", f"{name}.orders"]
            waiting = await catalog.commits(name, unpublished=True)
            assert [row.receipt for row in waiting] == receipts
            for stream in ("orders", "items"):
                at = f"{name}.{stream}"
                for unpublished in (False, True):
                    (row,) = await catalog.commits(name, stream, unpublished=unpublished)
                    assert row.receipt == at
                assert [one.body for one in await catalog.schemas(name, stream)] == [at]
                assert [one.path for one in await catalog.files(name, stream)] == [at]
                assert [d.fingerprint for d in await catalog.decisions(name, stream)] == [at]

    async def test_decisions_are_listed_oldest_first(self, world: World) -> None:
        lease = await world.lease()
        for follows, name in enumerate("bac"):
            decision = Decision("orders", 0, name, "approved", "[]", "policy", "")
            await world.commit(lease, batch(follows, decisions=(decision,)))
        found = await world.catalog.decisions("shop", "orders")
        assert [decision.fingerprint for decision in found] == ["b", "a", "c"]

    async def test_files_are_paged_by_path(self, world: World) -> None:
        names = ["a", "b/1", "b/2", "c", "ä"]
        entries = tuple(FileEntry(name, 1, 2, 3, 4, "hash") for name in reversed(names))
        await world.commit(await world.lease(), batch(files=entries))
        found: list[str] = []
        while page := await world.catalog.files(
            "shop", "orders", after=found[-1] if found else "", limit=2
        ):
            assert len(page) <= 2
            found += [file.path for file in page]
        assert found == names

    async def test_what_is_listed_without_a_limit_has_the_one_of_the_port(
        self, world: World
    ) -> None:
        catalog = world.catalog
        first, *_ = await world.claim(*(f"p{number}" for number in range(1001)))
        assert isinstance(first, Claimed)
        assert len(await catalog.changed(0)) == 1000
        assert len(await catalog.runs(RunQuery())) == 50
        files = tuple(FileEntry(f"{number}", 1, 2, 3, 4, "hash") for number in range(10_001))
        sealed = [batch(follows, name) for name in "abcdefghijklm" for follows in range(8)]
        await world.commit(first.lease, batch(files=files), *sealed)
        assert len(await catalog.files("p0", "orders")) == 10_000
        assert len(await catalog.commits("p0")) == 100
        assert len(await catalog.commits("p0", unpublished=True)) == 100
        async with anyio.create_task_group() as tasks:
            for _ in range(101):
                tasks.start_soon(world.edit, Pause("p0"))
        assert len(await catalog.edits()) == len(await catalog.edits("p0")) == 100

    async def test_holders_are_listed_with_their_leases(self, world: World) -> None:
        await world.claim("c", holder=BETA)
        await world.claim("a", "b")
        assert [(h.holder.id, h.leases) for h in await world.catalog.holders()] == [
            ("alpha", 2),
            ("beta", 1),
        ]

    async def test_stats_count_pipelines_and_open_runs(self, world: World) -> None:
        for name in ("a", "b"):
            await world.run(name)
        await world.lease("c")
        stats = await world.catalog.stats()
        assert (stats.pipelines, stats.open_runs, stats.last_error) == (3, 1, "")
        assert stats.backend
        assert stats.writes >= stats.groups > 0


@pytest.mark.anyio
class TestFollowing:
    async def test_all_pipelines_are_paged_in_the_order_of_their_changes(
        self, world: World
    ) -> None:
        names = [f"p{number}" for number in range(7)]
        for name in names:
            await world.edit(Pause(name))
        found, after = [], 0
        while page := await world.catalog.changed(after, limit=3):
            assert len(page) <= 3
            found += [state.name for state in page]
            after = page[-1].change
        assert found == names

    async def test_each_changed_pipeline_comes_once_in_its_newest_state(self, world: World) -> None:
        for name in ("a", "b", "c"):
            await world.edit(Pause(name))
        at = (await world.catalog.changed(0))[-1].change
        assert await world.catalog.changed(at) == ()
        await world.edit(Resume("b"))
        await world.edit(Resume("a"))
        await world.edit(Pause("b"))
        changed = await world.catalog.changed(at)
        assert [state.name for state in changed] == ["a", "b"]
        assert changed[1] == await world.catalog.pipeline("b")
        assert changed[1].paused is not None
        assert [s.name for s in await world.catalog.changed(0)] == ["c", "a", "b"]

    async def test_one_transaction_gives_each_pipeline_its_own_place(self, world: World) -> None:
        await world.claim("a", "b", "c")
        places = [state.change for state in await world.catalog.changed(0)]
        assert len(set(places)) == 3

    async def test_claims_commits_finishes_and_releases_are_changes(self, world: World) -> None:
        at = version = 0

        async def moved() -> bool:
            nonlocal at, version
            before, state = (at, version), await world.catalog.pipeline("shop")
            at, version = state.change, state.version
            return at > before[0] and version == before[1] + 1

        lease = await world.lease()
        assert await moved()
        await world.commit(lease, batch())
        assert await moved()
        await world.finish(lease)
        assert await moved()
        await world.lease()
        assert await moved()
        await world.renew()
        assert await moved()

    async def test_a_refused_write_is_no_change(self, world: World) -> None:
        await world.lease()
        before = (await world.catalog.pipeline("shop")).change
        await world.claim("shop", holder=BETA)
        assert (await world.catalog.pipeline("shop")).change == before

    async def test_a_wait_ends_when_another_process_changes_something(self, world: World) -> None:
        other = await world.open()
        await world.edit(Pause("shop"))
        at = (await world.catalog.pipeline("shop")).change
        heard = False

        async def listen() -> None:
            nonlocal heard
            heard = await world.catalog.wait_changed(at, 10 * SOON)

        with anyio.fail_after(SOON):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listen)
                await other.edit("2" * 32, "ben", "because", Resume("shop"))
        assert heard
        assert len(await world.catalog.changed(at)) == 1

    async def test_a_change_made_before_the_wait_ends_it_at_once(self, world: World) -> None:
        other = await world.open()
        await world.edit(Pause("shop"))
        at = (await world.catalog.pipeline("shop")).change
        await other.edit("2" * 32, "ben", "because", Resume("shop"))
        assert await world.catalog.wait_changed(at, SOON)

    async def test_a_wait_without_a_change_ends_with_its_time(self, world: World) -> None:
        await world.edit(Pause("shop"))
        at = (await world.catalog.pipeline("shop")).change
        with anyio.fail_after(SOON):
            while await world.catalog.wait_changed(at, 0.01):
                pass  # It may end early, but not for ever.
